//! Compiles the wire format. protox is a protobuf compiler in Rust, so nobody needs `protoc`.

use std::error::Error;

const PROTO: &str = "proto/istio_ca.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // Both sides bring their own TLS connection and HTTP/2, so tonic's transport stays out.
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
