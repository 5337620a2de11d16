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

/// What is there. `Ok(None)`: this kernel has no nf_tables. An error when it cannot be asked, for want of a privilege.
pub(crate) fn sets(prefix: &str) -> io::Result<Option<Sets>> {
    let payloads = match Kernel::netfilter()?.list(GET_CHAIN, &Body::new(&[0; STRUCTURE])) {
        Ok(payloads) => payloads,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
        // EINVAL: no such subsystem.
        Err(_) => return Ok(None),
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
