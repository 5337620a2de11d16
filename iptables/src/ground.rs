//! What the rules stand on: the leg's address on `lo`, and for TPROXY the route of marked packets.

use std::net::IpAddr;

use crate::{
    Error, Options,
    netlink::{address, address::LEG_ADDRESS_V6, routing},
    options::Ipv6,
    plan::{Family, Plan},
    values::Interface,
};

/// What one run has added.
#[derive(Debug, Default)]
pub(crate) struct Ground {
    address: bool,
    routes: Vec<Family>,
}

impl Ground {
    /// Adds what the plan needs and is not there. After an error everything is as it was, unless the error says
    /// otherwise. A host without IPv6 gets a notice and nothing else for it: IPv4 works on.
    pub(crate) fn prepare(plan: &Plan, options: &Options, notices: &mut Vec<String>) -> Result<Self, Error> {
        let mut added = Self::default();
        let without = if plan.families.contains(&Family::V6) { address::no_ipv6() } else { None };
        if let Some(why) = without {
            if options.ipv6 == Ipv6::On {
                return Err(Error::NoIpv6(why.to_owned()));
            }
            notices.push(format!(
                "IPv6 calls to the application have no source address ::6 on lo: {why}; IPv4 is complete"
            ));
        }
        let families = plan.families.iter().filter(|family| **family == Family::V4 || without.is_none());
        for family in families {
            if let Err(error) = added.prepare_family(*family, plan) {
                return Err(added.take_back(error));
            }
        }
        Ok(added)
    }

    fn prepare_family(&mut self, family: Family, plan: &Plan) -> Result<(), Error> {
        if family == Family::V6 {
            self.address = address::add_leg()?;
        }
        if plan.routes_to_loopback && routing::add_to_loopback(family)? {
            self.routes.push(family);
        }
        Ok(())
    }

    /// Takes back what this run has added, and returns the error that made it necessary.
    pub(crate) fn take_back(self, error: Error) -> Error {
        let routes = self.routes.iter().try_for_each(|family| routing::remove_to_loopback(*family).map(|_| ()));
        let address = if self.address { address::remove_leg().map(|_| ()) } else { Ok(()) };
        match routes.and(address) {
            Ok(()) => error,
            Err(undo) => error.with_undo_failure(undo.to_string()),
        }
    }

    /// Removes what an earlier set of rules needed and this plan does not.
    pub(crate) fn remove_unneeded(plan: &Plan) -> Result<(), Error> {
        for family in Family::ALL {
            let wanted = plan.families.contains(&family);
            if !(wanted && plan.routes_to_loopback) {
                routing::remove_to_loopback(family)?;
            }
            if family == Family::V6 && !wanted {
                address::remove_leg()?;
            }
        }
        Ok(())
    }

    /// Removes all of it that is there. `true` when something was.
    pub(crate) fn remove() -> Result<bool, Error> {
        let mut found = address::remove_leg()?;
        for family in Family::ALL {
            found |= routing::remove_to_loopback(family)?;
        }
        Ok(found)
    }

    /// What of it is there, in words.
    pub(crate) fn traces() -> Result<Vec<String>, Error> {
        let mut traces = Vec::new();
        if address::has_leg()? {
            traces.push(format!("the address {LEG_ADDRESS_V6} on lo"));
        }
        for family in Family::ALL {
            let (rule, route) = routing::has_to_loopback(family)?;
            traces.extend(rule.then(|| format!("the {family} rule 15006")));
            traces.extend(route.then(|| format!("the {family} route of table 15006")));
        }
        Ok(traces)
    }

    /// What of it a plan wants and is not there, in words.
    pub(crate) fn missing(plan: &Plan) -> Result<Vec<String>, Error> {
        let mut missing = Vec::new();
        for family in plan.families {
            if *family == Family::V6 && address::no_ipv6().is_some() {
                continue;
            }
            if *family == Family::V6 && !address::can_bind_leg()? {
                missing.push(format!("the address {LEG_ADDRESS_V6}/128 on lo"));
            }
            let (rule, route) = routing::has_to_loopback(*family)?;
            if plan.routes_to_loopback && !rule {
                missing.push(format!("the {family} rule \"15006: from all fwmark 0x1000/0x1000 lookup 15006\""));
            }
            if plan.routes_to_loopback && !route {
                missing.push(format!("the {family} route \"local default dev lo table 15006\""));
            }
        }
        Ok(missing)
    }

    /// The same as commands, for `print`.
    pub(crate) fn commands(plan: &Plan) -> Vec<String> {
        let mut commands = Vec::new();
        for family in plan.families {
            let flag = if *family == Family::V4 { "-4" } else { "-6" };
            if *family == Family::V6 {
                commands.push(format!("ip -6 addr add {LEG_ADDRESS_V6}/128 dev lo preferred_lft 0"));
            }
            if plan.routes_to_loopback {
                commands.push(format!("ip {flag} route add local default dev lo table 15006"));
                commands.push(format!("ip {flag} rule add pref 15006 fwmark 0x1000/0x1000 lookup 15006"));
            }
        }
        commands
    }
}

/// The interfaces that are included by their whole name and are not here: through them nothing is taken, and where no
/// other is included, nothing at all.
pub(crate) fn missing_interfaces(options: &Options) -> Vec<String> {
    let is_missing =
        |interface: &&Interface| !interface.is_wildcard() && nix::net::if_::if_nametoindex(interface.name()).is_err();
    options.include_interfaces.iter().filter(is_missing).map(|interface| interface.name().to_owned()).collect()
}

/// A word about IPv6 that nobody redirects although it could reach others.
pub(crate) fn warn_of_ipv6_bypass(options: &Options, notices: &mut Vec<String>) {
    if options.ipv6 != Ipv6::Off {
        return;
    }
    let global = |address: &IpAddr| match address {
        IpAddr::V6(ip) => {
            !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_multicast() && *ip != LEG_ADDRESS_V6
        }
        IpAddr::V4(_) => false,
    };
    // Without the list there is nothing to warn of that could be named.
    let addresses = address::all().unwrap_or_default();
    if let Some((address, _)) = addresses.iter().find(|(address, _)| global(address)) {
        notices.push(format!(
            "--ipv6 off, but this host has the address {address}: connections from and to it go past the sidecar"
        ));
    }
}
