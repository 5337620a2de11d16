//! Rules between right values: what one type alone cannot see.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use outrigger_identity::{SpiffeId, TrustDomain};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{
    Config, EndpointSource, HashPolicy, HumanDuration, IdPattern, InboundMode, InboundPort, LoadBalancing, MtlsMode,
    Protocol, ServiceConfig, problem::nearest,
};

/// A broken rule.
#[derive(Debug)]
pub(super) struct Issue {
    /// The value to change, as `services[1].port`.
    pub(super) path: String,
    pub(super) message: String,
    pub(super) remedy: String,
}

/// Every rule that `config` breaks.
pub(super) fn issues(config: &Config) -> Vec<Issue> {
    let mut check = Check(Vec::new());
    check.log(config);
    check.ports(config);
    check.identity(config);
    check.inbound(config);
    check.outbound_and_dns(config);
    check.services(config);
    check.drain(config);
    check.0.extend(super::routes_check::issues(config));
    check.0
}

struct Check(Vec<Issue>);

/// More workers than this is a typing error.
const MAX_WORKERS: u32 = 1_024;
/// The longest wait for a silent client: beyond it server-first protocols are unusable.
const MAX_DETECT_DELAY: Duration = Duration::from_secs(10);
/// A look-up more often than this would be a load on DNS that nobody asked for.
const LEAST_MIN_TTL: Duration = Duration::from_millis(100);
/// Linkerd bounds `Retry-After` by as much: who was overloaded longer ago than this may be asked again.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// Bounds of the lifetime that a CA can be asked for.
const CERTIFICATE_TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(30 * 24 * 3600);

impl Check {
    fn issue(&mut self, path: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Issue { path: path.into(), message: message.into(), remedy: remedy.into() });
    }

    fn port(&mut self, path: String, port: u16) {
        if port == 0 {
            self.issue(path, "0 is not a port that can be used", "give a port from 1 to 65535");
        }
    }

    fn at_most(&mut self, path: &str, value: u32, max: u32) {
        if value > max {
            self.issue(path, format!("{value} is beyond the limit"), format!("give at most {max}"));
        }
    }

    fn log(&mut self, config: &Config) {
        let level = &config.log.level;
        if let Err(e) = EnvFilter::builder().parse(level) {
            let remedy = "give a level as info, or directives as info,outrigger_sidecar::discovery=debug";
            return self.issue("log.level", format!("\"{level}\" is not a log filter: {e}"), remedy);
        }
        // The filter takes any word for a module's name: a misspelt level would switch all logging off in silence.
        for word in level.split(',').map(str::trim).filter(|w| !w.contains(['=', '[', ':'])) {
            let levels = ["trace", "debug", "info", "warn", "error", "off"];
            if word.parse::<LevelFilter>().is_err() && !word.starts_with("outrigger") {
                let remedy = match nearest(word, levels) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => format!("give one of {}; for a module write {word}=debug", levels.join(", ")),
                };
                self.issue("log.level", format!("\"{word}\" is not a log level"), remedy);
            }
        }
    }

    fn ports(&mut self, config: &Config) {
        if let Some(workers) = config.workers {
            self.at_most("workers", workers.get(), MAX_WORKERS);
        }
        let own = [
            ("inbound.port", config.inbound.port),
            ("outbound.port", config.outbound.port),
            ("admin.address", config.admin.address.port()),
            ("admin.telemetry_address", config.admin.telemetry_address.port()),
        ];
        let mut seen = BTreeMap::new();
        for (path, port) in own {
            self.port(path.to_owned(), port);
            if let Some(first) = seen.insert(port, path).filter(|_| port != 0) {
                let remedy = format!("give one of the two another port; the defaults are {DEFAULT_PORTS}");
                self.issue(path, format!("port {port} is also that of {first}"), remedy);
            }
        }
        for (i, exception) in config.inbound.ports.iter().enumerate() {
            if let Some(path) = seen.get(&exception.port).filter(|_| exception.port != 0) {
                let message = format!("{} is the sidecar's own {path}, not a port of the application", exception.port);
                self.issue(
                    format!("inbound.ports[{i}].port"),
                    message,
                    "give the port on which the application listens",
                );
            }
        }
    }

    fn identity(&mut self, config: &Config) {
        if config.identity.dir.as_os_str().is_empty() {
            self.issue("identity.dir", "the folder has no name", "give a folder, or leave the field out");
        }
        if config.identity.workload_api.is_some() && config.identity.ca.is_some() {
            let message = "the certificate cannot come from a Workload API and from a CA";
            self.issue("identity.workload_api", message, "remove it, or identity.ca");
        }
        if config.identity.workload_api.is_none() && config.identity.id.is_some() {
            let message = "only a Workload API has several identities to choose from";
            self.issue("identity.id", message, "remove it, or set identity.workload_api");
        }
        let Some(ca) = &config.identity.ca else { return };
        let paths = [("identity.ca.bundle", Some(&ca.bundle)), ("identity.ca.token_file", ca.token_file.as_ref())];
        for (path, file) in paths {
            if file.is_some_and(|f| f.as_os_str().is_empty()) {
                self.issue(path, "the file has no name", "give the path of a file");
            }
        }
        let printable = |id: &String| !id.is_empty() && id.len() <= 253 && id.bytes().all(|b| b.is_ascii_graphic());
        if ca.cluster_id.as_ref().is_some_and(|id| !printable(id)) {
            let message = "it is no name of a cluster";
            self.issue("identity.ca.cluster_id", message, "give 1 to 253 printable ASCII characters without blanks");
        }
        if let Some(ttl) = ca.ttl.filter(|ttl| !CERTIFICATE_TTL.contains(&ttl.get())) {
            let message = format!("{ttl} is not a lifetime that can be asked for");
            self.issue("identity.ca.ttl", message, "give 1m to 720h (30 days), or leave it to the CA");
        }
    }

    fn inbound(&mut self, config: &Config) {
        let inbound = &config.inbound;
        self.at_most("inbound.max_connections", inbound.max_connections.get(), 1_000_000);
        self.at_most("inbound.max_handshakes", inbound.max_handshakes.get(), 100_000);
        let domain = config.identity.trust_domain.as_ref();
        for (i, pattern) in inbound.allow.iter().enumerate() {
            self.member(&format!("inbound.allow[{i}]"), pattern, domain);
        }
        let mut seen = BTreeMap::new();
        for (i, port) in inbound.ports.iter().enumerate() {
            self.port(format!("inbound.ports[{i}].port"), port.port);
            if let Some(first) = seen.insert(port.port, i) {
                let message = format!("port {} is already that of inbound.ports[{first}]", port.port);
                self.issue(format!("inbound.ports[{i}].port"), message, "put both into one entry");
            }
            self.plaintext_paths(&format!("inbound.ports[{i}].plaintext_paths"), port, inbound.mode);
        }
    }

    fn plaintext_paths(&mut self, at: &str, port: &InboundPort, mode: InboundMode) {
        if port.plaintext_paths.is_empty() {
            return;
        }
        if port.mode.unwrap_or(mode) == InboundMode::Permissive {
            let message = "the port is permissive, so every path is open to plaintext already";
            return self.issue(at, message, "make the port strict (mode: strict), or leave plaintext_paths out");
        }
        if port.protocol == Protocol::Opaque {
            let message = "the port is opaque, so no path is ever looked at";
            return self.issue(at, message, "leave out protocol: opaque, or plaintext_paths");
        }
        for (i, path) in port.plaintext_paths.iter().enumerate() {
            let fine = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'*');
            if !path.starts_with('/') || !path.bytes().all(fine) {
                let message = format!("\"{path}\" is not an exact path");
                let remedy = "begin it with '/', without '?', '#', '*' or spaces, as \"/healthz\"";
                self.issue(format!("{at}[{i}]"), message, remedy);
            }
        }
    }

    fn member(&mut self, path: &str, pattern: &IdPattern, domain: Option<&TrustDomain>) {
        let Some(domain) = domain else { return };
        let member = match pattern {
            IdPattern::Exact(id) => id.is_member_of(domain),
            IdPattern::Prefix(prefix) => SpiffeId::parse(&format!("{prefix}x")).is_ok_and(|id| id.is_member_of(domain)),
        };
        if !member {
            let message = format!("{pattern} is not in the trust domain {domain}, so no peer can ever have it");
            self.issue(path, message, format!("begin it with spiffe://{domain}/, or correct identity.trust_domain"));
        }
    }

    fn outbound_and_dns(&mut self, config: &Config) {
        let (outbound, dns) = (&config.outbound, &config.dns);
        self.at_most("outbound.max_connections", outbound.max_connections.get(), 1_000_000);
        if outbound.detect_delay.get() > MAX_DETECT_DELAY {
            let message =
                format!("{} would hang every protocol in which the server speaks first", outbound.detect_delay);
            self.issue("outbound.detect_delay", message, "give at most 10s; the default is 30ms");
        }
        for (i, server) in dns.servers.iter().enumerate() {
            self.address(format!("dns.servers[{i}]"), *server);
        }
        self.nonzero("dns.timeout", dns.timeout, "a look-up needs time", "the default is 5s");
        if dns.min_ttl.get() < LEAST_MIN_TTL {
            let message = format!("{} would flood the DNS servers with look-ups", dns.min_ttl);
            self.issue("dns.min_ttl", message, "give at least 100ms; the default is 1s");
        }
        self.ordered(("dns.min_ttl", dns.min_ttl), ("dns.max_ttl", dns.max_ttl));
    }

    fn address(&mut self, path: String, address: SocketAddr) {
        if address.ip().is_unspecified() || address.ip().is_multicast() {
            let message = format!("{address} is not the address of a server");
            self.issue(path.clone(), message, "give the address under which it is reached");
        }
        self.port(path, address.port());
    }

    fn nonzero(&mut self, path: impl Into<String>, value: HumanDuration, why: &str, remedy: &str) {
        if value.get().is_zero() {
            self.issue(path, format!("zero: {why}"), format!("give a duration above zero; {remedy}"));
        }
    }

    fn ordered(&mut self, (low_path, low): (&str, HumanDuration), (high_path, high): (&str, HumanDuration)) {
        if low > high {
            let message = format!("{high} is less than {low_path}, which is {low}");
            self.issue(high_path, message, format!("raise {high_path} or lower {low_path}"));
        }
    }

    fn services(&mut self, config: &Config) {
        let (mut names, mut hosts) = (BTreeMap::new(), BTreeMap::new());
        for (i, service) in config.services.iter().enumerate() {
            let at = |field: &str| format!("services[{i}].{field}");
            if let Some(first) = names.insert(&service.name, i) {
                let message = format!("the name {} is already that of services[{first}]", service.name);
                self.issue(at("name"), message, "give every service a name of its own, or put both into one entry");
            } else {
                let own = std::slice::from_ref(&service.name);
                let given = if service.hosts.is_empty() { own } else { &service.hosts };
                for (h, host) in given.iter().enumerate() {
                    if let Some(first) = hosts.insert((host, service.port), i) {
                        let message = format!(
                            "{host}:{} already means services[{first}], so this one is unreachable",
                            service.port
                        );
                        let path = if service.hosts.is_empty() { at("name") } else { at(&format!("hosts[{h}]")) };
                        self.issue(path, message, "name each host and port in one service only");
                    }
                }
            }
            self.service(&at, service, config.identity.trust_domain.as_ref());
        }
    }

    fn load_balancing(&mut self, at: &impl Fn(&str) -> String, balancing: &LoadBalancing) {
        let path = |field: &str| at(&format!("load_balancing.{field}"));
        let hashing = balancing.policy.is_hashing();
        if hashing && balancing.hash.is_empty() {
            let message = "nothing says what requests are told apart by, so each would go to a random endpoint";
            self.issue(path("policy"), message, "give hash, as [{ header: x-user }], or another policy");
        }
        if !hashing && !balancing.hash.is_empty() {
            self.issue(path("hash"), "this policy uses no hash", "give policy: ring_hash or maglev, or leave hash out");
        }
        for (i, hash) in balancing.hash.iter().enumerate() {
            let path = path(&format!("hash[{i}]"));
            let HashPolicy { header, cookie, query, source_address, terminal: _ } = hash;
            let given = [header.is_some(), cookie.is_some(), query.is_some(), *source_address];
            if given.iter().filter(|given| **given).count() != 1 {
                let message = "it names not exactly one thing";
                self.issue(path.clone(), message, "give one of header, cookie, query and source_address: true");
            }
            if [cookie, query].into_iter().flatten().any(String::is_empty) {
                self.issue(path, "the name is empty", "give the name of a cookie or of a query parameter");
            }
        }
        let ring = balancing.ring_hash;
        for (field, size) in
            [("minimum_ring_size", ring.minimum_ring_size), ("maximum_ring_size", ring.maximum_ring_size)]
        {
            if size == 0 {
                self.issue(path(&format!("ring_hash.{field}")), "0 places hold nobody", "give 1 to 8388608");
            }
            self.at_most(&path(&format!("ring_hash.{field}")), size, 8 * 1024 * 1024);
        }
        if ring.minimum_ring_size > ring.maximum_ring_size {
            let message =
                format!("{} is more than maximum_ring_size, {}", ring.minimum_ring_size, ring.maximum_ring_size);
            self.issue(path("ring_hash.minimum_ring_size"), message, "raise the one or lower the other");
        }
        self.at_most(&path("maglev.table_size"), balancing.maglev.table_size, 5_000_011);
        if !balancing.maglev.is_prime() {
            let message = format!("{} is not prime, so some slots could stay empty", balancing.maglev.table_size);
            self.issue(path("maglev.table_size"), message, "give a prime number, as 65537");
        }
    }

    fn service(&mut self, at: &impl Fn(&str) -> String, service: &ServiceConfig, domain: Option<&TrustDomain>) {
        self.port(at("port"), service.port);
        if let Some(EndpointSource::Static(addresses)) = &service.endpoints {
            if addresses.is_empty() {
                self.issue(at("endpoints.static"), "no endpoint is listed", "list at least one, as 10.0.0.7:8080");
            }
            for (i, address) in addresses.iter().enumerate() {
                let path = at(&format!("endpoints.static[{i}]"));
                self.address(path.clone(), *address);
                if addresses[..i].contains(address) {
                    self.issue(path, format!("{address} is listed twice"), "list every endpoint once");
                }
            }
        }
        if service.mtls == MtlsMode::Off && !service.identities.is_empty() {
            let message = "without mTLS no identity is ever checked";
            self.issue(at("identities"), message, "leave out mtls: off, or the identities");
        }
        for (i, id) in service.identities.iter().enumerate() {
            self.member(&at(&format!("identities[{i}]")), &IdPattern::Exact(id.clone()), domain);
        }
        self.timeouts_and_retries(at, service);
        self.load_balancing(at, &service.load_balancing);
        if let Some(check) = &service.health_check {
            self.0.extend(super::health_check::issues(&at("health_check"), check));
        }

        let outlier = &service.outlier_detection;
        let path = |field: &str| at(&format!("outlier_detection.{field}"));
        self.nonzero(
            path("interval"),
            outlier.interval,
            "ejected endpoints would never come back",
            "the default is 10s",
        );
        let why = "an ejection would end at once";
        self.nonzero(path("base_ejection_time"), outlier.base_ejection_time, why, "the default is 30s");
        self.ordered(
            (&path("base_ejection_time"), outlier.base_ejection_time),
            (&path("max_ejection_time"), outlier.max_ejection_time),
        );
    }

    fn timeouts_and_retries(&mut self, at: &impl Fn(&str) -> String, service: &ServiceConfig) {
        let (timeouts, retry) = (&service.timeouts, &service.retry);
        self.nonzero(at("timeouts.connect"), timeouts.connect, "no connection could be made", "the default is 5s");
        if let (Some(request), Some(one_try)) = (timeouts.request.enabled(), timeouts.backend_request.enabled()) {
            // GEP-1742: the timeout of one try may not be longer than that of all.
            if one_try > request {
                let message = format!(
                    "{} for one try is longer than timeouts.request, which is {}",
                    timeouts.backend_request, timeouts.request
                );
                self.issue(at("timeouts.backendRequest"), message, "lower it, or raise timeouts.request");
            }
        }
        self.at_most(&at("retry.attempts"), retry.attempts, 10);
        self.at_most(&at("retry.budget_floor"), retry.budget_floor, 1_000);
        if retry.max_retry_after.get() > MAX_RETRY_AFTER {
            let message = format!("{} would leave an endpoint out for too long", retry.max_retry_after);
            let remedy = "give at most 5m; the default is 30s, and 0s takes no notice of Retry-After";
            self.issue(at("retry.max_retry_after"), message, remedy);
        }
        for (i, code) in retry.codes.iter().enumerate() {
            if !(400..=599).contains(code) {
                let message = format!("{code} is not the status of a failed response");
                self.issue(at(&format!("retry.codes[{i}]")), message, "give codes from 400 to 599, as 503");
            }
        }
        for (i, code) in retry.grpc_codes.iter().enumerate() {
            if code.is_ok() {
                let message = format!("{code} is not the status of a failed call");
                self.issue(at(&format!("retry.grpcCodes[{i}]")), message, "give statuses as UNAVAILABLE");
            }
        }
        if retry.attempts > 0 {
            let why = "retries would follow one another at once";
            self.nonzero(
                at("retry.backoff"),
                retry.backoff,
                why,
                "the default is 25ms; retry.attempts: 0 switches retries off",
            );
        }
    }

    fn drain(&mut self, config: &Config) {
        self.ordered(("drain.minimum", config.drain.minimum), ("drain.timeout", config.drain.timeout));
    }
}

const DEFAULT_PORTS: &str = "15006 inbound, 15001 outbound, 15000 admin and 15020 telemetry";
