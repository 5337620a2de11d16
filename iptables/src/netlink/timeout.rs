//! Time-out policies of connection tracking (nfnetlink_cttimeout), which iptables' `CT` target refers to by name. nft has
//! them in its table.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use super::{Body, CREATE_OR_REPLACE, Kernel, attribute, family_number, is_absent, refused};
use crate::{Error, plan::Family};

// linux/netfilter/nfnetlink_cttimeout.h; the subsystem's number is in the upper byte.
const NEW: u16 = 8 << 8;
const GET: u16 = (8 << 8) | 1;
const DELETE: u16 = (8 << 8) | 2;
const CTA_TIMEOUT_NAME: u16 = 1;
const CTA_TIMEOUT_L3PROTO: u16 = 2;
const CTA_TIMEOUT_L4PROTO: u16 = 3;
const CTA_TIMEOUT_DATA: u16 = 4;
const CTA_TIMEOUT_TCP_CLOSE_WAIT: u16 = 5;
const TCP: u8 = 6;
/// `struct nfgenmsg`.
const STRUCTURE: usize = 4;
const LOOK: &str =
    "the kernel needs CONFIG_NF_CT_NETLINK_TIMEOUT; or leave --close-wait-timeout out, or use --backend nft";

/// The policy of this name, if it is there.
pub(crate) fn get(name: &str) -> Result<Option<Duration>, Error> {
    let look = || Kernel::netfilter()?.list(GET, &Body::new(&[0; STRUCTURE]));
    let all = match look() {
        Err(error) if is_absent(&error) || error.raw_os_error() == Some(nix::libc::EINVAL) => return Ok(None),
        other => other.map_err(refused("list time-out policies", LOOK))?,
    };
    let seconds = all.iter().find_map(|payload| {
        let found = attribute(payload, STRUCTURE, CTA_TIMEOUT_NAME)?;
        let data = attribute(payload, STRUCTURE, CTA_TIMEOUT_DATA)?;
        let value: [u8; 4] = attribute(data, 0, CTA_TIMEOUT_TCP_CLOSE_WAIT)?.try_into().ok()?;
        (found.strip_suffix(&[0]) == Some(name.as_bytes())).then(|| u32::from_be_bytes(value))
    });
    Ok(seconds.map(|seconds| Duration::from_secs(seconds.into())))
}

/// Makes the policy of this name say this, or not be.
pub(crate) fn set(name: &str, family: Family, close_wait: Option<Duration>) -> Result<(), Error> {
    let Some(close_wait) = close_wait else {
        let body = Body::new(&[0; STRUCTURE]).with_text(CTA_TIMEOUT_NAME, name);
        let change = || Kernel::netfilter()?.ask(DELETE, 0, &body);
        // nf_tables lets go of the rules of a transaction a moment after it has ended.
        let deadline = Instant::now() + Duration::from_secs(2);
        return loop {
            match change() {
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(2));
                }
                Err(error) if !is_absent(&error) && error.raw_os_error() != Some(nix::libc::EINVAL) => {
                    break Err(refused("remove a time-out policy", LOOK)(error));
                }
                _ => break Ok(()),
            }
        };
    };
    let seconds = u32::try_from(close_wait.as_secs()).unwrap_or(u32::MAX);
    let data = Body::default().with(CTA_TIMEOUT_TCP_CLOSE_WAIT, &seconds.to_be_bytes());
    let body = Body::new(&[0; STRUCTURE])
        .with_text(CTA_TIMEOUT_NAME, name)
        .with(CTA_TIMEOUT_L3PROTO, &u16::from(family_number(family)).to_be_bytes())
        .with(CTA_TIMEOUT_L4PROTO, &[TCP])
        .with_nested(CTA_TIMEOUT_DATA, data);
    let change = || -> io::Result<()> { Kernel::netfilter()?.ask(NEW, CREATE_OR_REPLACE, &body) };
    change().map_err(refused("make a time-out policy", LOOK))
}
