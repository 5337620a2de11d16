//! Connects to whichever of a name's addresses answers first, as RFC 8305 (Happy Eyeballs) has it: a dead replica of the CA,
//! or an IPv6 that leads nowhere, costs a quarter of a second and not the whole time of an enrolment.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, task::JoinSet, time::sleep};

/// RFC 8305 section 8: Connection Attempt Delay.
const STAGGER: Duration = Duration::from_millis(250);
/// Beyond these the rest would not have its turn within the limit of connecting.
const MAX_ADDRESSES: usize = 32;

/// The first connection to be made to any of them. Each begins 250 ms after the one before, or when that has failed.
///
/// # Errors
///
/// Of the last to fail, where all do.
pub(super) async fn first_of(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut left = in_turn(addresses);
    let mut dialling = JoinSet::new();
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(address) = left.pop_front() {
            dialling.spawn(async move {
                let connected = TcpStream::connect(address).await;
                connected.map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))
            });
        }
        let next = async { if left.is_empty() { std::future::pending().await } else { sleep(STAGGER).await } };
        tokio::select! {
            biased;
            ended = dialling.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(why))) => error = why,
                Some(Err(ended)) => error = io::Error::other(ended),
                None => return Err(error),
            },
            () = next => {}
        }
    }
}

/// The families by turns, beginning with that of the first, each in its order (RFC 8305 section 4).
fn in_turn(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else { return VecDeque::new() };
    let (same, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let mut turns = VecDeque::new();
    loop {
        let pair = [same.next(), other.next()];
        if pair == [None, None] || turns.len() >= MAX_ADDRESSES {
            return turns;
        }
        turns.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use tokio::net::TcpListener;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_take_turns() {
        let addresses = ["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1"].map(at);
        assert_eq!(in_turn(addresses.to_vec()), ["[::1]:1", "127.0.0.1:1", "[::2]:1", "[::3]:1"].map(at));
        assert!(in_turn(Vec::new()).is_empty());
        assert!(in_turn(vec![at("[::1]:1"); 1000]).len() <= MAX_ADDRESSES + 1);
    }

    #[tokio::test]
    async fn one_that_refuses_and_one_that_is_silent_delay_and_do_not_prevent() {
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refusing = {
            let bound = TcpListener::bind("127.0.0.1:0").await.unwrap();
            bound.local_addr().unwrap()
        };
        // A full backlog is silent: of a listener of no length that nobody accepts from.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(at("127.0.0.1:0")).unwrap();
        let silent = socket.listen(0).unwrap();
        let silent_at = silent.local_addr().unwrap();
        let mut filling = Vec::new();
        for _ in 0..4 {
            filling.push(tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(silent_at)).await);
        }
        assert!(filling.last().unwrap().is_err(), "the backlog is not full");
        let began = Instant::now();
        let stream = first_of(vec![refusing, silent_at, good.local_addr().unwrap()]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good.local_addr().unwrap());
        let took = began.elapsed();
        assert!(took >= STAGGER && took < 10 * STAGGER, "{took:?}");
    }

    #[tokio::test]
    async fn where_all_refuse_the_last_is_named_and_where_there_is_none_that_is_said() {
        let refusing = {
            let bound = TcpListener::bind("127.0.0.1:0").await.unwrap();
            bound.local_addr().unwrap()
        };
        let error = first_of(vec![refusing]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&refusing.to_string()), "{error}");
        assert!(first_of(Vec::new()).await.unwrap_err().to_string().contains("no address"));
    }
}
