//! Addresses of interfaces: `::6/128` on `lo`, from which the sidecar's IPv6 leg to its application comes (IPv4 needs
//! none: all of 127.0.0.0/8 is on `lo`), and those of `verify`.
//!
//! `::6` is *deprecated* (preferred lifetime 0, valid for ever), so that nobody who has not bound it gets it as a source:
//! it is of global scope, and a pod whose only other address is link-local would otherwise talk to the world from it.
//! That also tells ours from one that somebody else has added, whatever else was there when we were killed.

use std::{
    fs, io,
    net::{IpAddr, Ipv6Addr},
};

use super::{Body, CREATE_NEW, Kernel, attribute, attributes, family_number, is_absent, refused, u32_at};
use crate::{Error, plan::Family};

/// The source of the sidecar's leg to its application over IPv6; Istio's.
pub const LEG_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

// linux/rtnetlink.h, linux/if_addr.h.
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_F_NODAD: u8 = 0x02;
/// `struct ifaddrmsg`.
const STRUCTURE: usize = 8;
const LOOK: &str = "look at `ip -6 addr show dev lo`; nothing was left half done";

/// Why a host has no use for the address; `None` when it has.
pub(crate) fn no_ipv6() -> Option<&'static str> {
    match fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6") {
        Ok(text) if text.trim() == "1" => Some("net.ipv6.conf.lo.disable_ipv6 is 1"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("this kernel has no IPv6"),
        _ => None,
    }
}

/// Why a new interface would have no IPv6; `None` when it would.
pub(crate) fn no_new_ipv6() -> Option<&'static str> {
    no_ipv6().or_else(|| {
        let text = fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6").unwrap_or_default();
        (text.trim() == "1").then_some("net.ipv6.conf.default.disable_ipv6 is 1: no connection can be tried")
    })
}

/// Adds the leg's address unless it is there. `true` when this call added it.
pub(crate) fn add_leg() -> Result<bool, Error> {
    let change = || {
        // struct ifa_cacheinfo: preferred (never), valid (for ever), created, updated.
        let lifetimes = [0, u32::MAX, 0, 0].map(u32::to_ne_bytes).concat();
        let body = body(LEG_ADDRESS_V6.into(), 128, 0, lo()?).with(IFA_CACHEINFO, &lifetimes);
        Kernel::routing()?.ask(RTM_NEWADDR, CREATE_NEW, &body)
    };
    match change() {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(refused("add ::6/128 to lo", LOOK)(error)),
    }
}

/// Removes the leg's address if it is there and ours. `true` when it was.
pub(crate) fn remove_leg() -> Result<bool, Error> {
    if !has_leg()? {
        return Ok(false);
    }
    let change = || Kernel::routing()?.ask(RTM_DELADDR, 0, &body(LEG_ADDRESS_V6.into(), 128, 0, lo()?));
    match change() {
        Err(error) if !is_absent(&error) => Err(refused("remove ::6/128 from lo", LOOK)(error)),
        _ => Ok(true),
    }
}

/// Whether the leg's address is there and ours.
pub(crate) fn has_leg() -> Result<bool, Error> {
    let ours = |payload: &Vec<u8>| {
        let here = attribute(payload, STRUCTURE, IFA_ADDRESS) == Some(&LEG_ADDRESS_V6.octets());
        let lifetimes = attribute(payload, STRUCTURE, IFA_CACHEINFO);
        here && lifetimes.is_some_and(|bytes| u32_at(bytes, 0) == Some(0) && u32_at(bytes, 4) == Some(u32::MAX))
    };
    match list(Family::V6) {
        Ok(all) => Ok(all.iter().any(ours)),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(refused("list the addresses", LOOK)(error)),
    }
}

/// Whether the leg's address is on `lo`, whoever has added it: the leg can bind to either.
pub(crate) fn can_bind_leg() -> Result<bool, Error> {
    let all = all().map_err(refused("list the addresses", LOOK))?;
    let lo = lo().map_err(refused("find lo", LOOK))?;
    Ok(all.contains(&(LEG_ADDRESS_V6.into(), lo)))
}

/// All addresses of this host, with the index of their interface.
pub(crate) fn all() -> io::Result<Vec<(IpAddr, u32)>> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let payloads = match list(family) {
            Err(error) if is_absent(&error) => continue,
            other => other?,
        };
        for payload in payloads {
            let Some(index) = u32_at(&payload, 4) else { continue };
            // For a point-to-point interface IFA_ADDRESS is the other end.
            let local = attribute(&payload, STRUCTURE, IFA_LOCAL);
            let address = local.or(attribute(&payload, STRUCTURE, IFA_ADDRESS)).and_then(ip);
            found.extend(address.map(|address| (address, index)));
        }
    }
    Ok(found)
}

/// Adds an address of one host to an interface, usable at once.
pub(crate) fn add(address: IpAddr, interface: u32) -> io::Result<()> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    Kernel::routing()?.ask(RTM_NEWADDR, CREATE_NEW, &body(address, length, IFA_F_NODAD, interface))
}

fn list(family: Family) -> io::Result<Vec<Vec<u8>>> {
    let mut structure = [0; STRUCTURE];
    if let Some(first) = structure.first_mut() {
        *first = family_number(family);
    }
    let mut all = Kernel::routing()?.list(RTM_GETADDR, &Body::new(&structure))?;
    all.retain(|payload| payload.first() == Some(&family_number(family)) && attributes(payload, STRUCTURE).count() > 0);
    Ok(all)
}

/// `struct ifaddrmsg` and the address.
fn body(address: IpAddr, length: u8, flags: u8, interface: u32) -> Body {
    let (family, octets) = octets(address);
    let mut structure = vec![family_number(family), length, flags, 0];
    structure.extend(interface.to_ne_bytes());
    Body::new(&structure).with(IFA_LOCAL, &octets).with(IFA_ADDRESS, &octets)
}

/// An address as netlink has it.
pub(crate) fn octets(address: IpAddr) -> (Family, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (Family::V4, v4.octets().to_vec()),
        IpAddr::V6(v6) => (Family::V6, v6.octets().to_vec()),
    }
}

/// The address that these bytes are.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The index of `lo`.
pub(super) fn lo() -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex("lo")?)
}
