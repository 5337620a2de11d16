//! Look-ups: one question about a target, put as DNS queries, and the answers put together.

use std::{
    collections::HashMap,
    fmt::Display,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, NoRecords, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RData, RecordType, rdata::SRV},
    },
    system_conf::parse_resolv_conf,
};

use tokio::time::Instant;

use super::{DiscoveryError, EndpointAddress, Target, system::FromFile};
use crate::config::{DnsConfig, EndpointSource};

/// How long an entry of /etc/hosts is believed before the file's date is looked at again.
const HOSTS_TTL: Duration = Duration::from_secs(5);

/// Targets of one SRV name that are looked up at the same time.
const CONCURRENT_TARGETS: usize = 16;

/// Targets of one SRV name beyond which the rest is left out.
const MAX_SRV_TARGETS: usize = 1_000;

/// What a look-up of a target came to.
pub(super) enum Answer {
    /// There are endpoints. `partial`: something could not be looked up, and what was known of it before stands in.
    Found { endpoints: Vec<EndpointAddress>, ttl: Duration, partial: bool },
    /// It is certain that there are none.
    Empty { ttl: Duration },
    /// Nothing is certain.
    Failed(Failure),
}

/// A look-up without a usable answer.
pub(super) struct Failure {
    pub(super) error: String,
    /// What is left of the last good set, where one family was answered as empty while the other one failed: the empty
    /// one is believed. Else the last good set stays as it is.
    pub(super) endpoints: Option<Vec<EndpointAddress>>,
}

/// The last good answers: each is believed for its own TTL, and stands in for what fails later.
#[derive(Default)]
pub(super) struct Known {
    srv: Kept<SRV>,
    addresses: HashMap<Name, Families>,
}

impl Known {
    /// Everything is to be asked for again, whatever its TTL.
    pub(super) fn expire(&mut self) {
        self.srv.until = None;
        for families in self.addresses.values_mut() {
            (families.v4.until, families.v6.until) = (None, None);
        }
    }
}

#[derive(Default, Clone)]
struct Families {
    v4: Kept<IpAddr>,
    v6: Kept<IpAddr>,
}

/// The records of one name and type.
#[derive(Clone)]
struct Kept<T> {
    records: Vec<T>,
    /// Not to be asked for again before that.
    until: Option<Instant>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { records: Vec::new(), until: None }
    }
}

impl<T> Kept<T> {
    /// What is left of the TTL.
    fn left(&self) -> Option<Duration> {
        self.until?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    fn keep(&mut self, records: Vec<T>, ttl: Duration) {
        self.records = records;
        self.until = Instant::now().checked_add(ttl);
    }
}

/// The addresses of one name.
struct Addresses {
    ips: Vec<IpAddr>,
    /// Least of the families that were answered.
    ttl: Option<Duration>,
    /// Whether a family was answered with records.
    found: bool,
    error: Option<String>,
}

/// Asks the system's, or the configured, DNS servers.
pub(super) struct Dns {
    resolver: Source,
    hosts: FromFile<Arc<Hosts>>,
    timeout: Duration,
    max_ttl: Duration,
}

enum Source {
    Configured(TokioResolver),
    System(FromFile<TokioResolver>),
}

impl Dns {
    pub(super) fn new(config: &DnsConfig, hosts: &Path, resolv_conf: &Path) -> Result<Self, DiscoveryError> {
        let timeout = config.timeout.get().max(Duration::from_millis(10));
        let build = move |servers: ResolverConfig, system: ResolverOpts| {
            let mut builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
            *builder.options_mut() = options(system, timeout);
            builder.build().map_err(|e| e.to_string())
        };
        let resolver = if config.servers.is_empty() {
            let from_file = FromFile::new(
                resolv_conf,
                move |bytes| {
                    let (servers, options) = parse_resolv_conf(bytes).map_err(|e| e.to_string())?;
                    build(servers, options)
                },
                |why| Err(DiscoveryError(format!("{why}; mend that file or set dns.servers"))),
            )?;
            Source::System(from_file)
        } else {
            let servers = config.servers.iter().map(|server| {
                let [mut udp, mut tcp] = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                (udp.port, tcp.port) = (server.port(), server.port());
                NameServerConfig::new(server.ip(), true, vec![udp, tcp])
            });
            let servers = ResolverConfig::from_name_servers(servers.collect());
            Source::Configured(build(servers, ResolverOpts::default()).map_err(DiscoveryError)?)
        };
        let parse = |bytes: &[u8]| {
            let mut hosts = Hosts::default();
            hosts.read_hosts_conf(bytes).map(|()| Arc::new(hosts)).map_err(|e| e.to_string())
        };
        // A machine without /etc/hosts is in order.
        let hosts = FromFile::new(hosts, parse, |_| Ok::<_, DiscoveryError>(Arc::default()))?;
        Ok(Self { resolver, hosts, timeout, max_ttl: config.max_ttl.get() })
    }

    /// Looks a target up, as far as `known` has outlived its TTLs, and brings that up to date.
    pub(super) async fn look_up(&self, target: &Target, known: &mut Known) -> Answer {
        match &target.source {
            EndpointSource::Dns(host) => match name(host.as_str()) {
                Ok(name) => self.look_up_host(name, target.port, known).await,
                Err(error) => failed(error),
            },
            EndpointSource::Srv(host) => match name(host.as_str()) {
                Ok(name) => self.look_up_srv(name, known).await,
                Err(error) => failed(error),
            },
            // `Discovery::watch` has made a constant of it.
            EndpointSource::Static(addresses) => Answer::Found {
                endpoints: addresses.iter().copied().map(EndpointAddress::plain).collect(),
                ttl: Duration::MAX,
                partial: false,
            },
        }
    }

    async fn look_up_host(&self, name: Name, port: u16, known: &mut Known) -> Answer {
        let found = self.addresses(&name, known.addresses.entry(name.clone()).or_default()).await;
        let endpoints: Vec<_> = found.ips.iter().map(|ip| EndpointAddress::plain(SocketAddr::new(*ip, port))).collect();
        match (found.error, found.ttl) {
            (error, Some(ttl)) if found.found => Answer::Found { endpoints, ttl, partial: error.is_some() },
            (None, ttl) => Answer::Empty { ttl: ttl.unwrap_or_default() },
            (Some(error), ttl) => Answer::Failed(Failure { error, endpoints: ttl.is_some().then_some(endpoints) }),
        }
    }

    /// RFC 2782. Addresses of the targets are looked up rather than taken from the additional section, which a server
    /// fills as it likes and cuts off as it must.
    async fn look_up_srv(&self, name: Name, known: &mut Known) -> Answer {
        let mut ttl = match known.srv.left() {
            Some(left) => left,
            None => match self.query(&name, RecordType::SRV).await {
                Reply::Records { data, ttl } => {
                    let records =
                        data.into_iter().filter_map(|d| if let RData::SRV(srv) = d { Some(srv) } else { None });
                    // "A Target of "." means that the service is decidedly not available at this domain."
                    let records = records.filter(|srv| !srv.target.is_root()).take(MAX_SRV_TARGETS).collect();
                    known.srv.keep(records, ttl);
                    ttl
                }
                Reply::Empty { ttl, .. } => {
                    *known = Known::default();
                    return Answer::Empty { ttl };
                }
                Reply::Failed(error) => return failed(error),
            },
        };
        let records = &known.srv.records;
        let mut names: Vec<Name> = records.iter().map(|srv| srv.target.clone()).collect();
        names.sort_unstable();
        names.dedup();
        let mut kept: HashMap<Name, Families> = std::mem::take(&mut known.addresses);
        let look_ups = names.into_iter().map(|name| {
            let mut families = kept.get(&name).cloned().unwrap_or_default();
            async move {
                let found = self.addresses(&name, &mut families).await;
                (name, families, found)
            }
        });
        let done: Vec<_> = stream::iter(look_ups).buffer_unordered(CONCURRENT_TARGETS).collect().await;

        let (mut answered, mut found_any, mut error) = (false, false, None);
        let mut ips: HashMap<Name, Vec<IpAddr>> = HashMap::new();
        kept.clear();
        for (name, families, found) in done {
            if let Some(its) = found.ttl {
                ttl = ttl.min(its);
                answered = true;
            }
            found_any |= found.found;
            error = error.or(found.error);
            ips.insert(name.clone(), found.ips);
            kept.insert(name, families);
        }
        known.addresses = kept;
        let endpoints: Vec<_> = records
            .iter()
            .flat_map(|srv| {
                let ips = ips.get(&srv.target).into_iter().flatten();
                ips.map(|ip| EndpointAddress {
                    address: SocketAddr::new(*ip, srv.port),
                    weight: u32::from(srv.weight),
                    priority: srv.priority,
                })
            })
            .collect();
        match error {
            error if found_any => Answer::Found { endpoints, ttl, partial: error.is_some() },
            None => Answer::Empty { ttl },
            Some(error) => Answer::Failed(Failure { error, endpoints: answered.then_some(endpoints) }),
        }
    }

    /// A and AAAA of a name, as far as `known` has outlived its TTLs, which is brought up to date.
    async fn addresses(&self, name: &Name, known: &mut Families) -> Addresses {
        let (v4, v6) =
            tokio::join!(self.family(name, RecordType::A, &known.v4), self.family(name, RecordType::AAAA, &known.v6));
        let mut all = Addresses { ips: Vec::new(), ttl: None, found: false, error: None };
        let (mut found_anew, mut nonexistent) = (false, None);
        for (reply, last) in [(v4, &mut known.v4), (v6, &mut known.v6)] {
            let ttl = match reply {
                Asked::Still { left } => left,
                Asked::Anew(Reply::Records { data, ttl }) => {
                    last.keep(data.iter().filter_map(RData::ip_addr).collect(), ttl);
                    found_anew |= !last.records.is_empty();
                    ttl
                }
                Asked::Anew(Reply::Empty { ttl, nonexistent: name_too }) => {
                    // NODATA of one family says nothing about the other one; NXDOMAIN does (RFC 8020).
                    nonexistent = nonexistent.or(name_too.then_some(ttl));
                    last.keep(Vec::new(), ttl);
                    ttl
                }
                Asked::Anew(Reply::Failed(error)) => {
                    all.error = all.error.or(Some(error));
                    continue;
                }
            };
            all.found |= !last.records.is_empty();
            all.ttl = Some(all.ttl.map_or(ttl, |other| other.min(ttl)));
        }
        if let Some(ttl) = nonexistent
            && !found_anew
        {
            // The name does not exist, whatever became of the other query or is still known of it.
            known.v4.keep(Vec::new(), ttl);
            known.v6.keep(Vec::new(), ttl);
            (all.ttl, all.found, all.error) = (Some(ttl), false, None);
        }
        all.ips = [&known.v4.records[..], &known.v6.records[..]].concat();
        all
    }

    async fn family(&self, name: &Name, kind: RecordType, known: &Kept<IpAddr>) -> Asked {
        match known.left() {
            Some(left) => Asked::Still { left },
            None => Asked::Anew(self.query(name, kind).await),
        }
    }

    /// Asks, and gives a TTL of no more than `dns.max_ttl`.
    async fn query(&self, name: &Name, kind: RecordType) -> Reply {
        match self.reply(name, kind).await {
            Reply::Records { data, ttl } => Reply::Records { data, ttl: ttl.min(self.max_ttl) },
            Reply::Empty { ttl, nonexistent } => Reply::Empty { ttl: ttl.min(self.max_ttl), nonexistent },
            Reply::Failed(error) => Reply::Failed(error),
        }
    }

    async fn reply(&self, name: &Name, kind: RecordType) -> Reply {
        if let Some(reply) = self.hosts_entry(name, kind) {
            return reply;
        }
        let resolver = match &self.resolver {
            Source::Configured(resolver) => resolver.clone(),
            Source::System(file) => file.get(),
        };
        let failed = |why: &dyn Display| Reply::Failed(format!("cannot resolve {name} {kind}: {why}"));
        match tokio::time::timeout(self.timeout, resolver.lookup(name.clone(), kind)).await {
            Err(_) => failed(&format_args!("no answer from the DNS servers within {:?}", self.timeout)),
            Ok(Ok(lookup)) => {
                let ttl = lookup.answers().iter().map(|r| r.ttl).min().unwrap_or(0);
                let data = lookup.answers().iter().filter(|r| r.record_type() == kind).map(|r| r.data.clone());
                Reply::Records { data: data.collect(), ttl: Duration::from_secs(ttl.into()) }
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => empty(&none, &failed),
            Ok(Err(NetError::Dns(DnsError::ResponseCode(code)))) => {
                failed(&format_args!("the DNS server said: {code}"))
            }
            Ok(Err(e)) => failed(&e),
        }
    }

    /// A name that is in /etc/hosts is not asked for, in neither family (hosts(5), and `hosts: files dns` in nsswitch.conf(5)).
    fn hosts_entry(&self, name: &Name, kind: RecordType) -> Option<Reply> {
        let hosts = self.hosts.get();
        let entry = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let other = match kind {
            RecordType::A => RecordType::AAAA,
            RecordType::AAAA => RecordType::A,
            _ => return None,
        };
        match entry(kind) {
            Some(found) => {
                let data = found.answers().iter().map(|r| r.data.clone()).collect();
                Some(Reply::Records { data, ttl: HOSTS_TTL })
            }
            None => entry(other).map(|_| Reply::Empty { ttl: HOSTS_TTL, nonexistent: false }),
        }
    }
}

/// What is known of one family of a name.
enum Asked {
    /// What was known, for so long.
    Still {
        left: Duration,
    },
    Anew(Reply),
}

/// What one query came to.
enum Reply {
    Records { data: Vec<RData>, ttl: Duration },
    Empty { ttl: Duration, nonexistent: bool },
    Failed(String),
}

/// RFC 2308 section 2: NXDOMAIN, or NODATA. Name servers without an SOA are a referral: we asked somebody who does not
/// resolve for us, and know nothing. Without either the answer is believed, but not for long (section 5: it is not to
/// be cached).
fn empty(none: &NoRecords, failed: &dyn Fn(&dyn Display) -> Reply) -> Reply {
    if none.soa.is_none() && none.ns.is_some() {
        return failed(&"the DNS server referred us elsewhere; it does not offer recursion");
    }
    Reply::Empty {
        // The lesser of the SOA's TTL and its MINIMUM field (section 5).
        ttl: Duration::from_secs(none.negative_ttl.unwrap_or(0).into()),
        nonexistent: none.response_code == hickory_resolver::proto::op::ResponseCode::NXDomain,
    }
}

/// Ours over the system's: no cache (the task obeys the TTLs itself), no hosts file (read here), two rounds within
/// `timeout`, EDNS, and TCP where UDP does not get through.
fn options(mut system: ResolverOpts, timeout: Duration) -> ResolverOpts {
    system.cache_size = 0;
    system.use_hosts_file = ResolveHosts::Never;
    system.edns0 = true;
    system.try_tcp_on_error = true;
    system.timeout = timeout / 2;
    system.attempts = 1;
    // Queries that may be on the way to one server: above what `MAX_LOOKUPS` targets put at once.
    system.max_active_requests = 1_024;
    system
}

fn failed(error: String) -> Answer {
    Answer::Failed(Failure { error, endpoints: None })
}

/// A name with a dot is fully qualified: see the module.
fn name(host: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(host).map_err(|e| format!("cannot resolve {host}: {e}"))?;
    if host.contains('.') {
        name.set_fqdn(true);
    }
    Ok(name)
}

/// A target's name for people.
pub(super) fn name_of(target: &Target) -> String {
    match &target.source {
        EndpointSource::Dns(host) => host.to_string(),
        EndpointSource::Srv(host) => format!("{host} (SRV)"),
        EndpointSource::Static(addresses) => format!("{addresses:?}"),
    }
}
