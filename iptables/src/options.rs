//! The options of a redirection, checked so that the plan has nothing left to check.

use std::{str::FromStr, time::Duration};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    InvalidOption,
    plan::{DNS_PORT, FWMARK, Family, TELEMETRY_PORT},
    values::{Interface, Mark, PortRange, UidRange},
};

/// What to redirect, where to, and what to leave alone. An exclusion wins over an inclusion; each inclusion that is
/// given narrows, so that with two of them both must hold.
#[derive(Debug, Clone)]
pub struct Options {
    /// How inbound connections reach the sidecar. Default [`Mode::Redirect`].
    pub mode: Mode,
    /// The sidecar's port for connections from peers. Default 15006.
    pub inbound_port: u16,
    /// The sidecar's port for connections of the application. Default 15001.
    pub outbound_port: u16,
    /// By what the sidecar's own connections are known. Default: the user id 1337.
    pub proxy: Proxy,
    /// What happens to a connection of the application to its own pod. Default [`SelfCall::Direct`].
    pub self_call: SelfCall,
    /// Ports of the workload of which peers reach no others through the sidecar. Empty: all.
    pub include_inbound_ports: Vec<PortRange>,
    /// Ports of the workload that peers reach without the sidecar, beside [`TELEMETRY_PORT`].
    pub exclude_inbound_ports: Vec<PortRange>,
    /// Networks of peers that alone come to the sidecar. Empty: all.
    pub include_inbound_cidrs: Vec<IpNet>,
    /// Networks of peers that reach the workload without the sidecar.
    pub exclude_inbound_cidrs: Vec<IpNet>,
    /// Ports of others that alone are reached through the sidecar. Empty: all.
    pub include_outbound_ports: Vec<PortRange>,
    /// Ports of others that the application reaches without the sidecar.
    pub exclude_outbound_ports: Vec<PortRange>,
    /// Networks that alone are reached through the sidecar. Empty: all.
    pub include_outbound_cidrs: Vec<IpNet>,
    /// Networks that the application reaches without the sidecar; its DNS questions to them as well.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Users whose connections are left alone; their DNS questions as well.
    pub exclude_uids: Vec<UidRange>,
    /// Interfaces whose connections, in and out, are alone redirected. Empty: all.
    pub include_interfaces: Vec<Interface>,
    /// Interfaces whose connections, in and out, are left alone; DNS questions through them as well.
    pub exclude_interfaces: Vec<Interface>,
    /// Where the application's DNS questions, UDP and TCP port 53, are answered: this port of 127.0.0.1 and ::1.
    pub dns_port: Option<u16>,
    /// Whether segments to this host that connection tracking cannot place are dropped. Default yes.
    pub drop_invalid: bool,
    /// How long connection tracking remembers a connection that one side has closed. Whole seconds, at least 1.
    /// `None`: the kernel's 60 s (`nf_conntrack_tcp_timeout_close_wait`), after which a silent one breaks.
    pub close_wait_timeout: Option<Duration>,
    /// Whether IPv6 is redirected. Default [`Ipv6::Auto`].
    pub ipv6: Ipv6,
}

/// How inbound connections reach the sidecar. Outbound ones are redirected in both modes: a TPROXY needs packets that
/// arrive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// NAT to the sidecar's port.
    #[default]
    Redirect,
    /// TPROXY: no address is translated, and the sidecar can keep the client's source address toward the application.
    Tproxy,
}

/// What happens to a connection of the application to an address of its own pod that is not loopback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SelfCall {
    /// It is left alone.
    #[default]
    Direct,
    /// It goes through the sidecar's inbound port, like that of a peer.
    Inbound,
}

/// Whether IPv6 is redirected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ipv6 {
    /// Where the kernel has it.
    #[default]
    Auto,
    /// Yes, or fail.
    On,
    /// No. IPv6 connections go past the sidecar.
    Off,
}

/// By what the sidecar's own connections are known: whatever has one of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its user.
    pub uid: Option<u32>,
    /// Its primary group.
    pub gid: Option<u32>,
    /// The mark that it puts on its sockets (`SO_MARK`).
    pub mark: Option<Mark>,
}

impl Default for Proxy {
    fn default() -> Self {
        Self { uid: Some(1337), gid: None, mark: None }
    }
}

/// One choice among words.
macro_rules! words {
    ($kind:ident { $($word:literal => $variant:ident),+ }) => {
        impl FromStr for $kind {
            type Err = InvalidOption;

            fn from_str(text: &str) -> Result<Self, InvalidOption> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(InvalidOption(format!("{text:?} is none of {}", [$($word),+].join(", ")))),
                }
            }
        }
    };
}

words!(Mode { "redirect" => Redirect, "tproxy" => Tproxy });
words!(SelfCall { "direct" => Direct, "inbound" => Inbound });
words!(Ipv6 { "auto" => Auto, "on" => On, "off" => Off });

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            inbound_port: 15006,
            outbound_port: 15001,
            proxy: Proxy::default(),
            self_call: SelfCall::default(),
            include_inbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            include_inbound_cidrs: Vec::new(),
            exclude_inbound_cidrs: Vec::new(),
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_outbound_cidrs: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            exclude_uids: Vec::new(),
            include_interfaces: Vec::new(),
            exclude_interfaces: Vec::new(),
            dns_port: None,
            drop_invalid: true,
            close_wait_timeout: None,
            ipv6: Ipv6::default(),
        }
    }
}

impl Options {
    /// The families whose connections are redirected.
    pub fn families(&self) -> &'static [Family] {
        if self.ipv6 == Ipv6::Off { &[Family::V4] } else { &Family::ALL }
    }

    /// Refuses options that cannot work together.
    pub(crate) fn check(&self) -> Result<(), InvalidOption> {
        self.check_ports()?;
        self.check_proxy()?;
        if let Some(timeout) = self.close_wait_timeout
            && (timeout.as_secs() == 0 || timeout.subsec_nanos() != 0)
        {
            return Err(refusal(format!("--close-wait-timeout {timeout:?} is not whole seconds, at least 1s")));
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<(), InvalidOption> {
        let mut own = vec![("--inbound-port", self.inbound_port), ("--outbound-port", self.outbound_port)];
        own.extend(self.dns_port.map(|port| ("--dns-port", port)));
        for (index, (flag, port)) in own.iter().enumerate() {
            if *port == 0 {
                return Err(refusal(format!("port 0 cannot be listened on; give {flag} from 1 to 65535")));
            }
            if let Some((other, _)) = own.iter().take(index).find(|(_, earlier)| earlier == port) {
                return Err(refusal(format!(
                    "{other} and {flag} are both {port}: the sidecar tells what arrives apart by them; give two"
                )));
            }
            if *port == TELEMETRY_PORT {
                return Err(refusal(format!("port {port} is the sidecar's health and metrics port; give another")));
            }
        }
        // An outside peer that could reach these past the inbound rules would talk to the sidecar as if it were the
        // application: an open relay that speaks with the workload's identity.
        for port in [self.inbound_port, self.outbound_port] {
            if let Some(range) = self.exclude_inbound_ports.iter().find(|range| range.contains(port)) {
                return Err(refusal(format!(
                    "--exclude-inbound-ports {range} holds {port}, a port of the sidecar itself: peers would reach it \
                     unguarded; leave it out"
                )));
            }
        }
        if let Some(port) = self.dns_port {
            if port == DNS_PORT {
                return Err(refusal(
                    "--dns-port 53: by port 53 the questions that are redirected are told from those that have been; give \
                     another, such as 15053"
                        .to_owned(),
                ));
            }
            if let Some(range) = self.exclude_outbound_ports.iter().find(|range| range.contains(DNS_PORT)) {
                return Err(refusal(format!(
                    "--exclude-outbound-ports {range} holds 53, which --dns-port redirects; leave one of them out"
                )));
            }
        }
        Ok(())
    }

    fn check_proxy(&self) -> Result<(), InvalidOption> {
        let Proxy { uid, gid, mark } = &self.proxy;
        if uid.is_none() && gid.is_none() && mark.is_none() {
            return Err(refusal(
                "nothing tells the sidecar's connections from the application's; give --proxy-uid, --proxy-gid or \
                 --proxy-mark"
                    .to_owned(),
            ));
        }
        for (flag, id) in [("--proxy-uid", uid), ("--proxy-gid", gid)] {
            if *id == Some(u32::MAX) {
                return Err(refusal(format!(
                    "{flag} 4294967295 means \"nobody\" to the kernel; give the sidecar's id"
                )));
            }
        }
        if let (Mode::Tproxy, Some(mark)) = (self.mode, mark)
            && mark.mask() & FWMARK != 0
            && mark.value() & FWMARK != 0
        {
            return Err(refusal(format!(
                "--proxy-mark {mark} has the bit {FWMARK:#x}, by which --mode tproxy routes; give another"
            )));
        }
        if let (Some(uid), true) = (uid, gid.is_none() && mark.is_none())
            && let Some(range) =
                self.exclude_uids.iter().find(|range| range.first() == 0 && range.last() == u32::MAX - 1)
        {
            return Err(refusal(format!(
                "--exclude-uids {range} is everybody, uid {uid} included: no connection would be redirected"
            )));
        }
        Ok(())
    }

    /// What is allowed but deserves a word.
    pub(crate) fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if self.proxy.uid == Some(0) {
            notices.push("--proxy-uid 0: every process of root bypasses the mesh, not the sidecar alone".to_owned());
        }
        if self.proxy.gid == Some(0) {
            notices.push("--proxy-gid 0: every process of root's group bypasses the mesh".to_owned());
        }
        for (flag, nets) in [
            ("--include-inbound-cidrs", &self.include_inbound_cidrs),
            ("--include-outbound-cidrs", &self.include_outbound_cidrs),
        ] {
            for family in self.families() {
                if !nets.is_empty() && !nets.iter().any(|net| family.has(net)) {
                    notices.push(format!(
                        "{flag} names no network of {family}: all connections of {family} go past the sidecar"
                    ));
                }
            }
        }
        notices
    }
}

fn refusal(words: String) -> InvalidOption {
    InvalidOption(words)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Options)) -> String {
        let mut options = Options::default();
        change(&mut options);
        options.check().expect_err("this was taken").to_string()
    }

    #[test]
    fn the_sidecars_own_ports_cannot_be_laid_open() {
        let refusal = refused(|options| options.exclude_inbound_ports = vec!["15000-15005".parse().unwrap()]);
        assert!(refusal.contains("15001"), "{refusal}");
        let options = Options { exclude_inbound_ports: vec!["15007-15020".parse().unwrap()], ..Options::default() };
        options.check().unwrap();
    }

    #[test]
    fn ports_that_cannot_be_told_apart_are_refused() {
        refused(|options| options.inbound_port = 15001);
        refused(|options| options.outbound_port = 15020);
        refused(|options| options.inbound_port = 0);
        refused(|options| options.dns_port = Some(15006));
        refused(|options| options.dns_port = Some(53));
        refused(|options| {
            options.dns_port = Some(15053);
            options.exclude_outbound_ports = vec!["1-1023".parse().unwrap()];
        });
    }

    #[test]
    fn the_sidecar_must_be_known_by_something() {
        refused(|options| options.proxy = Proxy { uid: None, gid: None, mark: None });
        refused(|options| options.proxy.uid = Some(u32::MAX));
        refused(|options| options.exclude_uids = vec!["0-4294967294".parse().unwrap()]);
        refused(|options| {
            options.mode = Mode::Tproxy;
            options.proxy.mark = Some("0x1001".parse().unwrap());
        });
        let options = Options { proxy: Proxy { uid: None, gid: Some(7), mark: None }, ..Options::default() };
        options.check().unwrap();
    }

    #[test]
    fn a_bypass_of_a_whole_family_is_not_silent() {
        let options = Options { include_outbound_cidrs: vec!["10.0.0.0/8".parse().unwrap()], ..Options::default() };
        assert!(options.notices().iter().any(|words| words.contains("IPv6")), "{:?}", options.notices());
        assert!(Options::default().notices().is_empty());
    }

    #[test]
    fn a_close_wait_timeout_is_what_the_kernel_can_keep() {
        refused(|options| options.close_wait_timeout = Some(Duration::from_millis(1500)));
        refused(|options| options.close_wait_timeout = Some(Duration::ZERO));
    }
}
