//! Compiles the wire formats. protox is a protobuf compiler in Rust, so nobody needs `protoc`.

use std::error::Error;

const PROTOS: [&str; 2] = ["proto/istio_ca.proto", "proto/workload.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // Both sides bring their own TLS connection and HTTP/2, so tonic's transport stays out.
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
