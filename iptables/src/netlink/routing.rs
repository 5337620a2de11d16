//! Policy routing: packets that bear [`FWMARK`] are this host's own, so that the application's answers to the sidecar's
//! transparent leg come back to it; and the private table of `verify`.

use std::{io, net::IpAddr};

use super::{Body, CREATE_NEW, Kernel, address, attribute, family_number, is_absent, refused, u32_at};
use crate::{
    Error,
    plan::{FWMARK, Family},
};

// linux/rtnetlink.h, linux/fib_rules.h.
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RT_SCOPE_HOST: u8 = 254;
const RT_SCOPE_LINK: u8 = 253;
const RTPROT_STATIC: u8 = 4;
const FR_ACT_TO_TBL: u8 = 1;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
/// `struct rtmsg` and `struct fib_rule_hdr`.
const STRUCTURE: usize = 12;

/// Our table, and the place of our rule: after `local`, before `main` (32766). A rule without a place of its own would
/// get a new one on each run.
const TPROXY: u32 = 15006;
/// The same for `verify`.
const VERIFY: u32 = 15007;
const LOOK: &str = "look at `ip rule` and `ip route show table 15006`; the kernel needs CONFIG_IP_MULTIPLE_TABLES";

/// Has marked packets of a family routed to `lo`. `true` when this call did it.
pub(crate) fn add_to_loopback(family: Family) -> Result<bool, Error> {
    let change = || {
        let route = once(RTM_NEWROUTE, &local_default(family, address::lo()?))?;
        // Last, so that no packet is routed by an empty table.
        Ok(once(RTM_NEWRULE, &marked(family))? | route)
    };
    change().map_err(refused("route marked packets to lo", LOOK))
}

/// Takes that back, whatever of it is there. `true` when something was.
pub(crate) fn remove_to_loopback(family: Family) -> Result<bool, Error> {
    let change = || {
        let rule = gone(RTM_DELRULE, &marked(family))?;
        Ok(gone(RTM_DELROUTE, &local_default(family, address::lo()?))? | rule)
    };
    change().map_err(refused("remove the route of marked packets to lo", LOOK))
}

/// What of it is there: the rule, and the route.
pub(crate) fn has_to_loopback(family: Family) -> Result<(bool, bool), Error> {
    let look = || {
        let mut structure = [0; STRUCTURE];
        structure[0] = family_number(family);
        let kernel = Kernel::routing()?;
        let table = |payload: &Vec<u8>, kind| attribute(payload, STRUCTURE, kind).and_then(|bytes| u32_at(bytes, 0));
        let rule = kernel.list(RTM_GETRULE, &Body::new(&structure))?.iter().any(|payload| {
            payload.first() == Some(&family_number(family))
                && table(payload, FRA_TABLE) == Some(TPROXY)
                && table(payload, FRA_FWMARK) == Some(FWMARK)
        });
        let route = kernel.list(RTM_GETROUTE, &Body::new(&structure))?.iter().any(|payload| {
            payload.first() == Some(&family_number(family)) && table(payload, RTA_TABLE) == Some(TPROXY)
        });
        Ok((rule, route))
    };
    match look() {
        Err(error) if is_absent(&error) => Ok((false, false)),
        other => other.map_err(refused("list rules and routes", LOOK)),
    }
}

/// Has what comes from this address routed through this interface alone, for `verify`.
pub(crate) fn add_probe(source: IpAddr, interface: u32) -> io::Result<()> {
    let (family, octets) = address::octets(source);
    let mut structure = [family_number(family), 0, 0, 0, 0, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST, 0, 0, 0, 0];
    if family == Family::V6 {
        structure[6] = 0;
    }
    let route = Body::new(&structure).with(RTA_TABLE, &VERIFY.to_ne_bytes()).with(RTA_OIF, &interface.to_ne_bytes());
    once(RTM_NEWROUTE, &route)?;
    once(RTM_NEWRULE, &probe(family, &octets))?;
    Ok(())
}

/// Takes every rule of [`add_probe`] back; its route goes with the interface.
pub(crate) fn remove_probes(family: Family) -> io::Result<()> {
    let body = rule(family, 0, VERIFY);
    while gone(RTM_DELRULE, &body)? {}
    Ok(())
}

/// Whether a rule of [`add_probe`] is there.
pub(crate) fn has_probes(family: Family) -> Result<bool, Error> {
    let look = || {
        let mut structure = [0; STRUCTURE];
        structure[0] = family_number(family);
        Ok(Kernel::routing()?.list(RTM_GETRULE, &Body::new(&structure))?.iter().any(|payload| {
            let table = attribute(payload, STRUCTURE, FRA_TABLE).and_then(|bytes| u32_at(bytes, 0));
            payload.first() == Some(&family_number(family)) && table == Some(VERIFY)
        }))
    };
    match look() {
        Err(error) if is_absent(&error) => Ok(false),
        other => other.map_err(refused("list rules", LOOK)),
    }
}

fn probe(family: Family, source: &[u8]) -> Body {
    let length = u8::try_from(source.len() * 8).unwrap_or(u8::MAX);
    rule(family, length, VERIFY).with(FRA_SRC, source)
}

fn marked(family: Family) -> Body {
    rule(family, 0, TPROXY).with(FRA_FWMARK, &FWMARK.to_ne_bytes()).with(FRA_FWMASK, &FWMARK.to_ne_bytes())
}

fn rule(family: Family, source_length: u8, table: u32) -> Body {
    Body::new(&[family_number(family), 0, source_length, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0])
        .with(FRA_PRIORITY, &table.to_ne_bytes())
        .with(FRA_TABLE, &table.to_ne_bytes())
}

fn local_default(family: Family, lo: u32) -> Body {
    Body::new(&[family_number(family), 0, 0, 0, 0, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0])
        .with(RTA_TABLE, &TPROXY.to_ne_bytes())
        .with(RTA_OIF, &lo.to_ne_bytes())
}

fn once(kind: u16, body: &Body) -> io::Result<bool> {
    match Kernel::routing()?.ask(kind, CREATE_NEW, body) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn gone(kind: u16, body: &Body) -> io::Result<bool> {
    match Kernel::routing()?.ask(kind, 0, body) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
