//! The outside world, made of a pair of virtual interfaces in this very network namespace: one end is this host's, at
//! the other we read and write frames. No packet leaves the host, and no other traffic is routed differently: what comes
//! from the addresses here has a routing table of its own.

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    packet::Frames,
    segment::{ACK, RST, SYN, Segment},
};
use crate::{
    netlink::{address, link, routing},
    plan::Family,
};

/// This host's end, where it may be called so; and the other.
pub(super) const OUTER: &str = "outrigger-out";
const HARDWARE: [[u8; 6]; 2] = [[0x02, 0x4f, 0x52, 0, 0, 1], [0x02, 0x4f, 0x52, 0, 0, 2]];

/// How long all answers together may be waited for. They cross no network and take microseconds; what fails must be told
/// within two seconds all the same, on a busy machine too.
const ALL_PATIENCE: Duration = Duration::from_millis(1_600);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_millis(600);
/// How long one may take when the others have used up the time.
const LEAST_PATIENCE: Duration = Duration::from_millis(40);

/// How long the kernel may take to let packets through the pair.
const UP: Duration = Duration::from_millis(1_000);

/// The pair, removed when it is dropped.
pub(super) struct Outside {
    frames: Frames,
    start: Instant,
    sequence: u32,
}

/// What became of a segment that asked for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is open.
    Open,
    /// It was refused.
    Reset,
    /// Nothing came back.
    Silence,
}

/// Names that this host's end may have: one that is ours, or one that fits a wildcard.
pub(super) fn inner_names(wildcards: &[crate::Interface]) -> Vec<String> {
    let fitting = wildcards.iter().filter(|each| each.is_wildcard()).map(|each| format!("{}orv", each.name()));
    ["outrigger-in".to_owned()].into_iter().chain(fitting).filter(|name| name.len() <= 15).collect()
}

impl Outside {
    /// Makes the pair, with these addresses for this host's end.
    pub(super) fn new(inner: &str, addresses: &[IpAddr]) -> io::Result<Self> {
        remove()?;
        let ends = [inner, OUTER].into_iter().zip(HARDWARE).map(|(name, hardware)| link::End { name, hardware });
        let [inside, outside] = &ends.collect::<Vec<_>>()[..] else { return Err(io::ErrorKind::Other.into()) };
        link::add(inside, outside)?;
        // From here on a failure must not leave the pair.
        let made = Self::furnish(inner, addresses);
        if made.is_err() {
            remove()?;
        }
        made
    }

    fn furnish(inner: &str, addresses: &[IpAddr]) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(inner)?;
        for each in addresses {
            address::add(*each, index)?;
            routing::add_probe(*each, index)?;
        }
        let deadline = Instant::now() + UP;
        for name in [inner, OUTER] {
            while !link::is_operational(name)? && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let frames = Frames::of(nix::net::if_::if_nametoindex(OUTER)?)?;
        Ok(Self { frames, start: Instant::now(), sequence: std::process::id().wrapping_mul(0x9e37_79b9) })
    }

    /// How long the next answer may be waited for.
    pub(super) fn patience(&self) -> Duration {
        ALL_PATIENCE.saturating_sub(self.start.elapsed()).clamp(LEAST_PATIENCE, PATIENCE)
    }

    /// Opens a connection from outside and leaves it open; [`Self::abort`] ends it.
    pub(super) fn call(&mut self, from: (IpAddr, u16), to: (IpAddr, u16)) -> io::Result<(Answer, Segment)> {
        let mut segment = Segment { from, to, tcp: true, flags: SYN, sequence: self.sequence, acknowledgement: 0 };
        let answered = |seen: &Segment| seen.tcp && (seen.from, seen.to) == (to, from) && seen.flags & (SYN | RST) != 0;
        let mut answer = None;
        // Once more, as any host would.
        for _ in 0..2 {
            self.send(&segment)?;
            answer = self.wait_for(answered, self.patience() / 2)?;
            if answer.is_some() {
                break;
            }
        }
        let Some(answer) = answer else { return Ok((Answer::Silence, segment)) };
        if answer.flags & RST != 0 {
            return Ok((Answer::Reset, segment));
        }
        segment.flags = ACK;
        segment.sequence = segment.sequence.wrapping_add(1);
        segment.acknowledgement = answer.sequence.wrapping_add(1);
        self.send(&segment)?;
        Ok((Answer::Open, segment))
    }

    /// Ends a connection that was opened from outside.
    pub(super) fn abort(&mut self, mut last: Segment) -> io::Result<()> {
        last.flags = RST | ACK;
        self.send(&last)
    }

    /// Whether a packet to this destination has come out of the host, within this time.
    pub(super) fn has_seen(&mut self, to: (IpAddr, u16), within: Duration) -> io::Result<bool> {
        Ok(self.wait_for(|seen| seen.to == to, within)?.is_some())
    }

    fn send(&self, segment: &Segment) -> io::Result<()> {
        let [inner, outer] = HARDWARE;
        segment.frame(outer, inner).map_or(Ok(()), |frame| self.frames.send(&frame))
    }

    fn wait_for(&mut self, wanted: impl Fn(&Segment) -> bool, within: Duration) -> io::Result<Option<Segment>> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.frames.next(left)? {
                Some(frame) => {
                    if let Some(segment) = Segment::read(&frame).filter(&wanted) {
                        return Ok(Some(segment));
                    }
                }
                None if left.is_zero() => return Ok(None),
                None => {}
            }
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run.
        let _ = remove();
    }
}

/// Removes what is there of a pair, also that of a run that was killed.
pub(super) fn remove() -> io::Result<()> {
    link::remove(OUTER)?;
    Family::ALL.into_iter().try_for_each(routing::remove_probes)
}
