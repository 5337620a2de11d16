//! `Upgrade`: any protocol gets its bytes back; `websocket` gets a right handshake and its messages back (RFC 6455).

use aws_lc_rs::digest;
use base64::Engine as _;
use http::HeaderValue;
use hyper::{Request, Response, StatusCode, body::Incoming, header, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{
    body::OriginBody,
    routes::{answer, bare},
};

/// RFC 6455 section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// More than this in one frame is refused; no test sends more.
const MAX_FRAME: u64 = 16 << 20;

/// The `Sec-WebSocket-Accept` of a key.
pub fn accept(key: &str) -> String {
    let sum = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    base64::engine::general_purpose::STANDARD.encode(sum)
}

/// Answers 101 and echoes on the connection from then on.
pub fn upgrade(mut request: Request<Incoming>) -> Response<OriginBody> {
    let Some(protocol) = request.headers().get(header::UPGRADE).cloned() else {
        return answer(426, "this path wants an Upgrade header\n");
    };
    let mut response = bare(StatusCode::SWITCHING_PROTOCOLS);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, protocol.clone());
    let websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    if websocket {
        let Some(Ok(key)) = request.headers().get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::to_str) else {
            return answer(400, "a WebSocket handshake without Sec-WebSocket-Key\n");
        };
        let Ok(value) = HeaderValue::from_str(&accept(key)) else {
            return answer(400, "a bad Sec-WebSocket-Key\n");
        };
        response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, value);
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(io) = upgrade.await {
            // Either side may leave at any time; the peer's test looks at what it received.
            let _ = if websocket { echo_frames(TokioIo::new(io)).await } else { echo_bytes(TokioIo::new(io)).await };
        }
    });
    response
}

async fn echo_bytes(io: TokioIo<Upgraded>) -> std::io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(io);
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}

/// One frame: its first byte (FIN and opcode) and its payload, unmasked.
pub async fn read_frame(io: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let first = io.read_u8().await?;
    let second = io.read_u8().await?;
    let length = match second & 0x7f {
        126 => u64::from(io.read_u16().await?),
        127 => io.read_u64().await?,
        n => u64::from(n),
    };
    if length > MAX_FRAME {
        return Err(std::io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        io.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; length as usize];
    io.read_exact(&mut payload).await?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok((first, payload))
}

/// Writes one frame; a client's (`mask` given) is masked.
pub async fn write_frame(
    io: &mut (impl AsyncWrite + Unpin),
    first: u8,
    payload: &[u8],
    mask: Option<[u8; 4]>,
) -> std::io::Result<()> {
    let mut out = vec![first];
    let bit = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        n @ 0..=125 => out.push(bit | n as u8),
        n @ 126..=0xffff => {
            out.push(bit | 126);
            out.extend((n as u16).to_be_bytes());
        }
        n => {
            out.push(bit | 127);
            out.extend((n as u64).to_be_bytes());
        }
    }
    let mask = mask.inspect(|mask| out.extend(mask)).unwrap_or_default();
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    io.write_all(&out).await?;
    io.flush().await
}

async fn echo_frames(mut io: TokioIo<Upgraded>) -> std::io::Result<()> {
    loop {
        let (first, payload) = read_frame(&mut io).await?;
        match first & 0x0f {
            // Close: answered with the same code, then the connection ends (section 5.5.1).
            8 => {
                write_frame(&mut io, first, &payload, None).await?;
                return io.shutdown().await;
            }
            9 => write_frame(&mut io, 0x8a, &payload, None).await?,
            _ => write_frame(&mut io, first, &payload, None).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_accept_value_of_the_rfc() {
        assert_eq!(super::accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
