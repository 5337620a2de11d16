//! The origin's listeners.

use std::{io, net::SocketAddr, sync::Arc};

use clap::Args;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::routes::{self, Origin, Peer};

/// What to serve, and where.
#[derive(Debug, Clone, Args)]
pub struct ServeOptions {
    /// The name that `/` answers
    #[arg(long, default_value = "workload")]
    pub name: String,
    /// HTTP/1.1, HTTP/2 with prior knowledge and gRPC on this port; may be repeated
    #[arg(long)]
    pub http: Vec<u16>,
    /// A raw TCP echo on this port; ends its own direction when the client ended its
    #[arg(long)]
    pub tcp_echo: Vec<u16>,
    /// A server that speaks first ("220 NAME ready"), then echoes
    #[arg(long)]
    pub tcp_first: Vec<u16>,
    /// The address to listen on; [::] takes IPv4 as well
    #[arg(long, default_value = "::")]
    pub bind: std::net::IpAddr,
}

/// A listener with SO_REUSEADDR, so that a killed replica can come back at once; `[::]` takes IPv4 as well.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// Serves until SIGTERM or SIGINT, then ends at once: what is under way is cut, as an application without a graceful
/// stop would.
pub async fn serve(options: ServeOptions) -> io::Result<()> {
    if options.http.is_empty() && options.tcp_echo.is_empty() && options.tcp_first.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "nothing to serve: give --http PORT, --tcp-echo PORT or --tcp-first PORT",
        ));
    }
    let origin = Arc::new(Origin::new(options.name.clone()));
    let open = |port: u16| {
        let address = SocketAddr::new(options.bind, port);
        listen(address).map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))
    };
    for &port in &options.http {
        tokio::spawn(accept_http(open(port)?, origin.clone()));
    }
    for &port in &options.tcp_echo {
        tokio::spawn(accept_tcp(open(port)?, None));
    }
    for &port in &options.tcp_first {
        tokio::spawn(accept_tcp(open(port)?, Some(format!("220 {} ready\r\n", options.name).into())));
    }
    println!("{} ready", options.name);
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    Ok(())
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Errors only when the peer has already gone, which the next read tells.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            // Out of descriptors, or a connection that died in the queue: neither may end the listener.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    }
}

async fn accept_http(listener: TcpListener, origin: Arc<Origin>) {
    loop {
        let stream = accept(&listener).await;
        tokio::spawn(serve_http(stream, origin.clone()));
    }
}

/// Serves HTTP of either version on one connection; upgrades included.
pub async fn serve_http(stream: TcpStream, origin: Arc<Origin>) {
    // An IPv4 client of a dual-stack listener is shown as what it is.
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let peer = Peer { remote: stream.peer_addr().ok().map(plain), local: stream.local_addr().ok().map(plain) };
    let service = service_fn(move |request| {
        let (origin, peer) = (origin.clone(), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(routes::respond(origin, peer, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(1_000);
    // A connection's error is its client's to see; the routes count what was cut off.
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

async fn accept_tcp(listener: TcpListener, greeting: Option<Vec<u8>>) {
    loop {
        let stream = accept(&listener).await;
        let greeting = greeting.clone();
        tokio::spawn(async move {
            // The client sees the reset; there is nobody else to tell.
            let _ = echo(stream, greeting.as_deref()).await;
        });
    }
}

async fn echo(mut stream: TcpStream, greeting: Option<&[u8]>) -> io::Result<()> {
    if let Some(greeting) = greeting {
        stream.write_all(greeting).await?;
    }
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            n => stream.write_all(&buffer[..n]).await?,
        }
    }
}
