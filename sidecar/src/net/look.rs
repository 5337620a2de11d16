//! Reads the first bytes of a connection until it is known what it carries, without making anybody wait who waits
//! for the other side to speak.

use std::{
    future::{Future, pending},
    io,
    pin::pin,
    time::Duration,
};

use bytes::BytesMut;
use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
};

use super::detect::MAX_LOOK;

/// After this long in the middle of what may yet be HTTP or TLS, bytes are just bytes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was found out, and everything that was read on the way.
#[derive(Debug)]
pub struct Look<T, U> {
    /// What the connection carries; nothing where its bytes are opaque.
    pub found: Option<T>,
    /// What the client has sent.
    pub bytes: BytesMut,
    /// The upstream, where it had to be dialled to see whether it speaks first, and what it has said.
    pub upstream: Option<(U, BytesMut)>,
}

/// Reads from `stream`, of which `bytes` were read already, until `decide` knows.
///
/// A client that is silent for `silence` may be waiting for the server: then `dial` is called, and whichever side
/// speaks first decides. Bytes of the client are not sent on before the decision.
pub async fn look<T, U, E, D, F>(
    stream: &mut TcpStream,
    mut bytes: BytesMut,
    silence: Duration,
    mut decide: impl FnMut(&[u8]) -> Option<Option<T>>,
    dial: D,
) -> Result<Look<T, U>, E>
where
    U: AsyncRead + Unpin,
    E: From<io::Error>,
    D: FnOnce() -> F,
    F: Future<Output = Result<U, E>>,
{
    if !bytes.is_empty()
        && let Some(found) = decide(&bytes)
    {
        return Ok(Look { found, bytes, upstream: None });
    }
    let mut said = BytesMut::new();
    let mut upstream: Option<U> = None;
    // The usual case, a client that speaks at once, costs neither a timer nor a dial.
    loop {
        // Not `try_read_buf`: after a read that did not fill the buffer it would have the next one ask the kernel again.
        match stream.read_buf(reserved(&mut bytes)).now_or_never() {
            Some(Ok(0)) => return Ok(Look { found: None, bytes, upstream: None }),
            Some(Ok(_)) => {
                if let Some(found) = decide(&bytes) {
                    return Ok(Look { found, bytes, upstream: None });
                }
            }
            None => break,
            Some(Err(e)) => return Err(e.into()),
        }
    }
    let mut dial = Some(dial);
    let mut dialling = pin!(None::<F>);
    let mut quiet = pin!(tokio::time::sleep(silence));
    let mut patience = pin!(None::<tokio::time::Sleep>);
    loop {
        if patience.is_none() && !bytes.is_empty() {
            patience.set(Some(tokio::time::sleep(PATIENCE)));
        }
        tokio::select! {
            biased;
            read = stream.read_buf(reserved(&mut bytes)) => {
                if read? == 0 {
                    return Ok(Look { found: None, bytes, upstream: upstream.map(|u| (u, said)) });
                }
                if let Some(found) = decide(&bytes) {
                    return Ok(Look { found, bytes, upstream: upstream.map(|u| (u, said)) });
                }
                if bytes.len() >= MAX_LOOK {
                    return Ok(Look { found: None, bytes, upstream: upstream.map(|u| (u, said)) });
                }
            }
            heard = hear(&mut upstream, &mut said) => {
                // An end without a word is an answer too: the client must learn of it.
                if heard? == 0 {
                    tracing::debug!("the server closed the connection before the client spoke");
                }
                return Ok(Look { found: None, bytes, upstream: upstream.map(|u| (u, said)) });
            }
            dialled = finish(dialling.as_mut().as_pin_mut()) => {
                dialling.set(None);
                upstream = Some(dialled?);
            }
            () = quiet.as_mut(), if dial.is_some() => {
                dialling.set(dial.take().map(|dial| dial()));
            }
            () = finish(patience.as_mut().as_pin_mut()) => {
                return Ok(Look { found: None, bytes, upstream: upstream.map(|u| (u, said)) });
            }
        }
    }
}

fn reserved(bytes: &mut BytesMut) -> &mut BytesMut {
    bytes.reserve(2_048);
    bytes
}

async fn hear<U: AsyncRead + Unpin>(upstream: &mut Option<U>, said: &mut BytesMut) -> io::Result<usize> {
    match upstream {
        Some(upstream) => upstream.read_buf(reserved(said)).await,
        None => pending().await,
    }
}

async fn finish<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use tokio::{
        io::{AsyncWriteExt, DuplexStream, duplex},
        net::TcpListener,
    };

    use super::*;
    use crate::net::detect::{Kind, kind};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    fn decide(bytes: &[u8]) -> Option<Option<Kind>> {
        kind(bytes).map(|k| (k != Kind::Opaque).then_some(k))
    }

    #[tokio::test]
    async fn a_server_that_speaks_first_is_heard() {
        let (_client, mut accepted) = pair().await;
        let (near, mut far) = duplex(64);
        far.write_all(b"220 ready").await.unwrap();
        let look: Look<Kind, DuplexStream> =
            look::<_, _, io::Error, _, _>(&mut accepted, BytesMut::new(), Duration::from_millis(5), decide, || async {
                Ok(near)
            })
            .await
            .unwrap();
        assert_eq!(look.found, None);
        assert_eq!(look.upstream.unwrap().1, &b"220 ready"[..]);
    }

    #[tokio::test]
    async fn http_after_a_silence_is_still_http_and_nothing_was_sent_on() {
        let (mut client, mut accepted) = pair().await;
        let (near, mut far) = duplex(64);
        let speak = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            for b in b"GET /" {
                client.write_all(&[*b]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let looking = look::<_, DuplexStream, io::Error, _, _>(
            &mut accepted,
            BytesMut::new(),
            Duration::from_millis(5),
            decide,
            || async { Ok(near) },
        );
        let (look, ()) = tokio::join!(looking, speak);
        let look = look.unwrap();
        assert_eq!(look.found, Some(Kind::Http1));
        assert_eq!(look.bytes, &b"GET /"[..]);
        drop(look);
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert!(got.is_empty());
    }

    #[tokio::test]
    async fn a_dial_that_fails_ends_the_connection() {
        let (_client, mut accepted) = pair().await;
        let looked = look::<Kind, DuplexStream, io::Error, _, _>(
            &mut accepted,
            BytesMut::new(),
            Duration::from_millis(5),
            decide,
            || async { Err(io::ErrorKind::ConnectionRefused.into()) },
        )
        .await;
        assert_eq!(looked.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
