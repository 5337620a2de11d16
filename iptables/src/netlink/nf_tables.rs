//! What nf_tables holds of ours, asked of the kernel without a tool and without changing anything.

use std::io;

use super::{Body, Kernel, attribute};

/// NFT_MSG_GETCHAIN of NFNL_SUBSYS_NFTABLES (linux/netfilter/nfnetlink.h, nf_tables.h).
const GET_CHAIN: u16 = (10 << 8) | 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFPROTO_INET: u8 = 1;
/// `struct nfgenmsg`, whose first byte is the family.
const STRUCTURE: usize = 4;

/// Which sets of ours there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    /// The table of native nft.
    pub(crate) native: bool,
    /// Chains of iptables-nft whose name begins as ours do.
    pub(crate) iptables: bool,
}

/// What is there. `Ok(None)`: this kernel has no nf_tables. An error when it cannot be asked.
pub(crate) fn sets(prefix: &str) -> io::Result<Option<Sets>> {
    let payloads = match Kernel::netfilter().and_then(|kernel| kernel.list(GET_CHAIN, &Body::new(&[0; STRUCTURE]))) {
        Err(error) if is_without(&error) => return Ok(None),
        answer => answer?,
    };
    let mut sets = Sets::default();
    for payload in &payloads {
        let text = |kind| attribute(payload, STRUCTURE, kind).and_then(|bytes| bytes.strip_suffix(&[0]));
        if payload.first() == Some(&NFPROTO_INET) {
            sets.native |= text(NFTA_CHAIN_TABLE) == Some(b"outrigger");
        } else {
            sets.iptables |= text(NFTA_CHAIN_NAME).is_some_and(|name| name.starts_with(prefix.as_bytes()));
        }
    }
    Ok(Some(sets))
}

/// Whether an error means that there is no nf_tables. EINVAL: nfnetlink knows no such subsystem (nfnetlink_rcv_msg in
/// net/netfilter/nfnetlink.c); the others: there is no nfnetlink at all. Anything else, as too little memory, says nothing
/// about what is there, and rules of ours must not be overlooked for it.
fn is_without(error: &io::Error) -> bool {
    let codes = [libc::EINVAL, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::ENOPROTOOPT];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_want_of_the_subsystem_means_that_there_is_none() {
        for (code, without) in [
            (libc::EINVAL, true),
            (libc::EOPNOTSUPP, true),
            (libc::EPROTONOSUPPORT, true),
            (libc::EPERM, false),
            (libc::ENOMEM, false),
            (libc::ENOBUFS, false),
            (libc::EAGAIN, false),
            (libc::EINTR, false),
        ] {
            assert_eq!(is_without(&io::Error::from_raw_os_error(code)), without, "{code}");
        }
        assert!(!is_without(&io::Error::new(io::ErrorKind::InvalidData, "no acknowledgement")));
    }
}
