//! Servers whose every move a test writes: HTTP of any kind by a function, HTTP/2 frame by frame, plain bytes.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::{AbortHandle, JoinSet},
};

use super::{Pod, client::Body, pki::Issued, tls};

/// A server of the test's own; it and its connections end when this is dropped.
pub struct Script(AbortHandle);

impl Drop for Script {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Does `serve` with every connection to `port` of the pod.
pub fn connections<F, Fut>(pod: &Pod, port: u16, serve: F) -> Script
where
    F: Fn(TcpStream) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let listener = pod.listen(port);
    let task = tokio::task::spawn_local(async move {
        let mut open = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            open.spawn_local(serve(stream));
        }
    });
    Script(task.abort_handle())
}

/// Answers HTTP of either version at `port` of the pod with `answer`.
pub fn http<F, Fut>(pod: &Pod, port: u16, answer: F) -> Script
where
    F: Fn(Request<Incoming>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let answer = Arc::new(answer);
    connections(pod, port, move |stream| {
        let answer = Arc::clone(&answer);
        async move {
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            // What breaks a connection is for its client to see.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        }
    })
}

/// What a server of HTTP/2 frames does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// 200 once the whole request is there.
    Answer,
    /// RST_STREAM with REFUSED_STREAM as soon as the head is there (RFC 9113 section 8.7).
    Refuse,
    /// GOAWAY whose last stream is the one before, as soon as the head is there, and the connection's end.
    GoAwayBefore,
    /// The whole request, then GOAWAY that names it as the last one taken, and the connection's end.
    GoAwayAfter,
    /// The whole request, then RST_STREAM with INTERNAL_ERROR.
    Reset,
    /// The whole request, then the connection's end without a word.
    Close,
}

/// What reached a server of frames: in which order which of them got a request's head, and what it did.
pub type Arrivals = Arc<Mutex<Vec<(&'static str, Act)>>>;

/// Serves HTTP/2 in the clear frame by frame; what to do with each request is the next of `acts`, [`Act::Answer`] when
/// they are used up.
pub fn frames(pod: &Pod, port: u16, name: &'static str, acts: &Arc<Mutex<Vec<Act>>>, arrivals: &Arrivals) -> Script {
    let (acts, arrivals) = (Arc::clone(acts), Arc::clone(arrivals));
    connections(pod, port, move |stream| {
        let (acts, arrivals) = (Arc::clone(&acts), Arc::clone(&arrivals));
        async move {
            // The client ends it whenever it likes.
            let _ = serve_frames(stream, name, &acts, &arrivals).await;
        }
    })
}

/// The same behind mesh mTLS, as a sidecar of another make would.
pub fn mesh_frames(
    pod: &Pod,
    port: u16,
    name: &'static str,
    identity: Issued,
    acts: &Arc<Mutex<Vec<Act>>>,
    arrivals: &Arrivals,
) -> Script {
    let (acts, arrivals, identity) = (Arc::clone(acts), Arc::clone(arrivals), Arc::new(identity));
    connections(pod, port, move |stream| {
        let (acts, arrivals, identity) = (Arc::clone(&acts), Arc::clone(&arrivals), Arc::clone(&identity));
        async move {
            if let Ok(stream) = tls::accept(stream, &identity).await {
                let _ = serve_frames(stream, name, &acts, &arrivals).await;
            }
        }
    })
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// ACK of SETTINGS and PING, END_STREAM of DATA and HEADERS.
const FLAG: u8 = 1;
const END_HEADERS: u8 = 4;

async fn write_frame(
    io: &mut (impl AsyncWrite + Unpin),
    kind: u8,
    flags: u8,
    stream: u32,
    data: &[u8],
) -> io::Result<()> {
    let mut frame = (data.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(data);
    io.write_all(&frame).await?;
    io.flush().await
}

async fn serve_frames(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    name: &'static str,
    acts: &Mutex<Vec<Act>>,
    arrivals: &Mutex<Vec<(&'static str, Act)>>,
) -> io::Result<()> {
    io.read_exact(&mut [0; 24]).await?;
    write_frame(&mut io, SETTINGS, 0, 0, &[]).await?;
    let mut under_way = std::collections::HashMap::new();
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut data = vec![0; length];
        io.read_exact(&mut data).await?;
        let (kind, flags) = (head[3], head[4]);
        let ended = matches!(kind, HEADERS | DATA) && flags & FLAG != 0;
        if matches!(kind, SETTINGS | PING) && flags & FLAG == 0 {
            let data = if kind == PING { &data[..] } else { &[] };
            write_frame(&mut io, kind, FLAG, 0, data).await?;
        }
        if kind == HEADERS && !under_way.contains_key(&stream) {
            let act = {
                let mut acts = acts.lock().unwrap();
                if acts.is_empty() { Act::Answer } else { acts.remove(0) }
            };
            arrivals.lock().unwrap().push((name, act));
            under_way.insert(stream, act);
            match act {
                // 7: REFUSED_STREAM.
                Act::Refuse => write_frame(&mut io, RST_STREAM, 0, stream, &[0, 0, 0, 7]).await?,
                Act::GoAwayBefore => return go_away(io, stream - 1).await,
                _ => {}
            }
        }
        if ended {
            match under_way.get(&stream) {
                // 0x88 is ":status: 200" (RFC 7541 appendix A).
                Some(Act::Answer) => write_frame(&mut io, HEADERS, FLAG | END_HEADERS, stream, &[0x88]).await?,
                // 2: INTERNAL_ERROR.
                Some(Act::Reset) => write_frame(&mut io, RST_STREAM, 0, stream, &[0, 0, 0, 2]).await?,
                Some(Act::GoAwayAfter) => return go_away(io, stream).await,
                Some(Act::Close) => return io.shutdown().await,
                _ => {}
            }
        }
    }
}

/// GOAWAY with NO_ERROR and the end: what a client has sent by then is read, so that no reset overtakes the frame.
async fn go_away(mut io: impl AsyncRead + AsyncWrite + Unpin, last: u32) -> io::Result<()> {
    write_frame(&mut io, GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat()).await?;
    io.shutdown().await?;
    while io.read(&mut [0; 4096]).await? > 0 {}
    Ok(())
}
