//! Where options come from: the command line, else the environment, else a file, else the defaults.
//!
//! A variable is called as the flag, `--exclude-inbound-ports` as `OUTRIGGER_IPTABLES_EXCLUDE_INBOUND_PORTS`; the file is
//! YAML (so JSON too) with the flags' names without `--`. Lists are YAML lists or words with commas. An empty variable
//! is as good as none; a name that means nothing is an error in both.

mod words;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use ipnet::IpNet;
use serde::{
    Deserialize,
    de::{self, value::MapDeserializer},
};

use crate::{
    Error, InvalidOption, Options,
    backend::Choice,
    options::{Ipv6, Mode, Proxy, SelfCall},
    values::{Interface, Mark, PortRange, UidRange, parse_cidr, parse_duration},
};

use words::{list, one};

/// What every variable's name begins with.
const PREFIX: &str = "OUTRIGGER_IPTABLES_";
/// The variable that names the file.
const CONFIG: &str = "OUTRIGGER_IPTABLES_CONFIG";

/// Everything that can be set, each thing perhaps.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// How connections of peers reach the sidecar: redirect or tproxy [default: redirect]
    #[arg(long, value_name = "MODE")]
    #[serde(deserialize_with = "one")]
    mode: Option<Mode>,
    /// The sidecar's port for connections from peers [default: 15006]
    #[arg(long, value_name = "PORT")]
    #[serde(deserialize_with = "one")]
    inbound_port: Option<u16>,
    /// The sidecar's port for connections of the application [default: 15001]
    #[arg(long, value_name = "PORT")]
    #[serde(deserialize_with = "one")]
    outbound_port: Option<u16>,
    /// The sidecar's user id, whose own connections are left alone [default: 1337, unless --proxy-gid or --proxy-mark
    /// is given]
    #[arg(long, value_name = "UID")]
    #[serde(deserialize_with = "one")]
    proxy_uid: Option<u32>,
    /// The sidecar's group id, for a sidecar that shares its user with the application
    #[arg(long, value_name = "GID")]
    #[serde(deserialize_with = "one")]
    proxy_gid: Option<u32>,
    /// The mark that the sidecar puts on its sockets, as 0x539 or 0x500/0xf00
    #[arg(long, value_name = "MARK")]
    #[serde(deserialize_with = "one")]
    proxy_mark: Option<Mark>,
    /// What happens to the application's calls to its own pod's address: direct or inbound [default: direct]
    #[arg(long, value_name = "HOW")]
    #[serde(deserialize_with = "one")]
    self_call: Option<SelfCall>,
    /// Ports that alone peers reach through the sidecar, as 8080,9000-9010; any number
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    include_inbound_ports: Option<Vec<PortRange>>,
    /// Ports that peers reach without the sidecar; any number (15020 always is one)
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    exclude_inbound_ports: Option<Vec<PortRange>>,
    /// Networks of peers that alone come to the sidecar, IPv4 and IPv6 mixed; any number
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    include_inbound_cidrs: Option<Vec<Cidr>>,
    /// Networks of peers that reach the workload without the sidecar
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    exclude_inbound_cidrs: Option<Vec<Cidr>>,
    /// Ports of others that alone the application reaches through the sidecar
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    include_outbound_ports: Option<Vec<PortRange>>,
    /// Ports of others that the application reaches without the sidecar
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    exclude_outbound_ports: Option<Vec<PortRange>>,
    /// Networks that alone the application reaches through the sidecar
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    include_outbound_cidrs: Option<Vec<Cidr>>,
    /// Networks that the application reaches, and asks for names, without the sidecar
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    exclude_outbound_cidrs: Option<Vec<Cidr>>,
    /// Users whose connections are left alone, as 0,1000-1999
    #[arg(long, value_name = "UIDS", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    exclude_uids: Option<Vec<UidRange>>,
    /// Interfaces whose connections, in and out, are alone redirected, as eth0,cali*
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    include_interfaces: Option<Vec<Interface>>,
    /// Interfaces whose connections, in and out, are left alone
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    exclude_interfaces: Option<Vec<Interface>>,
    /// Redirect the application's DNS questions, UDP and TCP, to this port of 127.0.0.1 and ::1 [default: they are left
    /// alone; TCP ones are then connections like others]
    #[arg(long, value_name = "PORT")]
    #[serde(deserialize_with = "one")]
    dns_port: Option<u16>,
    /// Drop segments that connection tracking cannot place: true or false [default: true]
    #[arg(long, value_name = "BOOL")]
    #[serde(deserialize_with = "one")]
    drop_invalid: Option<bool>,
    /// How long a connection that one side has closed is remembered, as 1h [default: the kernel's 60 s]
    #[arg(long, value_name = "DURATION")]
    #[serde(deserialize_with = "one")]
    close_wait_timeout: Option<Time>,
    /// Whether IPv6 is redirected: auto, on or off [default: auto]
    #[arg(long, value_name = "WHETHER")]
    #[serde(deserialize_with = "one")]
    ipv6: Option<Ipv6>,
    #[command(flatten)]
    #[serde(skip)]
    place: Place,
    #[arg(skip)]
    #[serde(deserialize_with = "one")]
    backend: Option<Choice>,
    #[arg(skip)]
    #[serde(deserialize_with = "one")]
    netns: Option<PathBuf>,
    #[arg(skip)]
    #[serde(deserialize_with = "one")]
    wait: Option<Time>,
    #[arg(skip)]
    #[serde(deserialize_with = "one")]
    json: Option<bool>,
    #[arg(skip)]
    #[serde(deserialize_with = "one")]
    drain: Option<Time>,
}

/// Where, with what and how a command works.
#[derive(Debug, Default, Args)]
pub struct Place {
    /// Which tool applies the rules: auto, nft, iptables-nft or iptables-legacy; remove: auto is all of them
    /// [default: auto]
    #[arg(long, value_name = "BACKEND")]
    backend: Option<Choice>,
    /// Work in this network namespace, as /run/netns/NAME or /proc/PID/ns/net [default: the current one]
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    /// How long to wait for another run, or for the lock of iptables [default: 30s]
    #[arg(long, value_name = "DURATION")]
    wait: Option<Time>,
    /// Read options from this YAML file; those given here or in OUTRIGGER_IPTABLES_… variables win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON object on standard output instead of words, also for a failure
    #[arg(long)]
    json: bool,
}

/// What a command needs to know, from everywhere.
#[derive(Debug)]
pub struct Run {
    /// What to redirect.
    pub options: Options,
    /// With what.
    pub backend: Choice,
    /// Where; `None` is here.
    pub netns: Option<PathBuf>,
    /// How long to wait for a lock. Default 30 s.
    pub wait: Duration,
    /// Whether programs read the outcome.
    pub json: bool,
    /// `remove`: how long open connections may take. `None`: they end.
    pub drain: Option<Duration>,
}

impl Settings {
    /// Puts the environment and the file under what the command line says.
    ///
    /// # Errors
    /// When one of them cannot be read or holds what cannot be.
    pub fn resolve(self) -> Result<Run, Error> {
        let Place { backend, netns, wait, config, json } = self.place;
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let (environment, named) = Self::from_variables(variables)?;
        let file = config.or(named).map_or_else(|| Ok(Self::default()), |path| Self::from_file(&path))?;
        let mut layers = Layers { first: Self { place: Place::default(), ..self }, second: environment, third: file };
        let given = layers.take(|layer| layer.proxy_uid.take());
        let gid = layers.take(|layer| layer.proxy_gid.take());
        let mark = layers.take(|layer| layer.proxy_mark.take());
        let uid = given.or(if gid.is_none() && mark.is_none() { Proxy::default().uid } else { None });
        let default = Options::default();
        let nets = |nets: Option<Vec<Cidr>>| nets.unwrap_or_default().into_iter().map(|net| net.0).collect();
        let options = Options {
            mode: layers.take(|layer| layer.mode.take()).unwrap_or_default(),
            inbound_port: layers.take(|layer| layer.inbound_port.take()).unwrap_or(default.inbound_port),
            outbound_port: layers.take(|layer| layer.outbound_port.take()).unwrap_or(default.outbound_port),
            proxy: Proxy { uid, gid, mark },
            self_call: layers.take(|layer| layer.self_call.take()).unwrap_or_default(),
            include_inbound_ports: layers.take(|layer| layer.include_inbound_ports.take()).unwrap_or_default(),
            exclude_inbound_ports: layers.take(|layer| layer.exclude_inbound_ports.take()).unwrap_or_default(),
            include_inbound_cidrs: nets(layers.take(|layer| layer.include_inbound_cidrs.take())),
            exclude_inbound_cidrs: nets(layers.take(|layer| layer.exclude_inbound_cidrs.take())),
            include_outbound_ports: layers.take(|layer| layer.include_outbound_ports.take()).unwrap_or_default(),
            exclude_outbound_ports: layers.take(|layer| layer.exclude_outbound_ports.take()).unwrap_or_default(),
            include_outbound_cidrs: nets(layers.take(|layer| layer.include_outbound_cidrs.take())),
            exclude_outbound_cidrs: nets(layers.take(|layer| layer.exclude_outbound_cidrs.take())),
            exclude_uids: layers.take(|layer| layer.exclude_uids.take()).unwrap_or_default(),
            include_interfaces: layers.take(|layer| layer.include_interfaces.take()).unwrap_or_default(),
            exclude_interfaces: layers.take(|layer| layer.exclude_interfaces.take()).unwrap_or_default(),
            dns_port: layers.take(|layer| layer.dns_port.take()),
            drop_invalid: layers.take(|layer| layer.drop_invalid.take()).unwrap_or(default.drop_invalid),
            close_wait_timeout: layers.take(|layer| layer.close_wait_timeout.take()).map(|time| time.0),
            ipv6: layers.take(|layer| layer.ipv6.take()).unwrap_or_default(),
        };
        Ok(Run {
            options,
            backend: backend.or_else(|| layers.take(|layer| layer.backend.take())).unwrap_or_default(),
            netns: netns.or_else(|| layers.take(|layer| layer.netns.take())),
            wait: wait
                .or_else(|| layers.take(|layer| layer.wait.take()))
                .map_or(Duration::from_secs(30), |time| time.0),
            json: json || layers.take(|layer| layer.json.take()).unwrap_or(false),
            drain: layers.take(|layer| layer.drain.take()).map(|time| time.0),
        })
    }

    /// Whether the command line itself asks for JSON, for failures that come before everything else is known.
    pub fn wants_json(&self) -> bool {
        self.place.json
    }

    /// Those of a command that takes no rules.
    pub fn of(place: Place, drain: Option<Time>) -> Self {
        Self { place, drain, ..Self::default() }
    }

    /// What variables say, and the file that one of them names.
    fn from_variables(all: impl Iterator<Item = (String, String)>) -> Result<(Self, Option<PathBuf>), Error> {
        let mut config = None;
        let mut named = BTreeMap::new();
        for (name, value) in all.filter(|(_, value)| !value.trim().is_empty()) {
            if name == CONFIG {
                config = Some(PathBuf::from(value));
            } else if let Some(rest) = name.strip_prefix(PREFIX) {
                named.insert(rest.to_ascii_lowercase().replace('_', "-"), value);
            }
        }
        let settings = Self::deserialize(MapDeserializer::<_, de::value::Error>::new(named.into_iter()));
        let wrong = |error: de::value::Error| Error::Settings {
            place: format!("the environment ({PREFIX}…)"),
            said: error.to_string(),
        };
        Ok((settings.map_err(wrong)?, config))
    }

    fn from_file(path: &Path) -> Result<Self, Error> {
        let wrong = |said: String| Error::Settings { place: path.display().to_string(), said };
        let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))
    }
}

/// The places from which a value may come, the strongest first.
struct Layers {
    first: Settings,
    second: Settings,
    third: Settings,
}

impl Layers {
    fn take<T>(&mut self, mut value: impl FnMut(&mut Settings) -> Option<T>) -> Option<T> {
        let (first, second, third) = (value(&mut self.first), value(&mut self.second), value(&mut self.third));
        first.or(second).or(third)
    }
}

/// A network as the options have it.
#[derive(Debug, Clone, Copy)]
struct Cidr(IpNet);

impl FromStr for Cidr {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        parse_cidr(text).map(Self)
    }
}

/// A duration as the options have it.
#[derive(Debug, Clone, Copy)]
pub struct Time(pub Duration);

impl FromStr for Time {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, InvalidOption> {
        parse_duration(text).map(Self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn variables(all: &[(&str, &str)]) -> Result<(Settings, Option<PathBuf>), Error> {
        let all: Vec<_> = all.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())).collect();
        Settings::from_variables(all.into_iter())
    }

    fn file(text: &str) -> Result<Settings, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Settings::from_file(file.path())
    }

    #[test]
    fn every_flag_has_a_variable_and_a_name_in_the_file() {
        use clap::CommandFactory;

        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            _settings: Settings,
        }
        let command = Cli::command();
        let flags: Vec<String> = command
            .get_arguments()
            .filter_map(|argument| argument.get_long().map(str::to_owned))
            .filter(|flag| !["help", "config"].contains(&flag.as_str()))
            .collect();
        assert!(flags.len() > 20, "{flags:?}");
        for flag in flags {
            // Whatever the value, the name is known.
            let words = file(&format!("{flag}: ''")).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!words.contains("unknown field"), "{words}");
            let variable = flag.to_ascii_uppercase().replace('-', "_");
            let words = variables(&[(&variable, "x")]).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!words.contains("unknown field"), "{words}");
        }
    }

    #[test]
    fn a_file_says_what_flags_say() {
        let settings = file(
            "mode: tproxy\nproxy-uid: 7\nproxy-mark: 0x539\ndrop-invalid: false\nclose-wait-timeout: 1h\n\
             exclude-inbound-ports: [22, 9000-9010]\nexclude-outbound-ports: 25,26\n\
             exclude-outbound-cidrs:\n  - 10.0.0.0/8\n  - fd00::/8\nwait: 3\nbackend: iptables-legacy\n",
        )
        .unwrap();
        let run = settings.resolve().unwrap();
        assert_eq!((run.options.mode, run.options.proxy.uid), (Mode::Tproxy, Some(7)));
        assert_eq!(run.options.proxy.mark.unwrap().value(), 0x539);
        assert!(!run.options.drop_invalid);
        assert_eq!(run.options.close_wait_timeout, Some(Duration::from_secs(3600)));
        assert_eq!(run.options.exclude_inbound_ports.len(), 2);
        assert_eq!(run.options.exclude_outbound_ports.len(), 2);
        assert_eq!(run.options.exclude_outbound_cidrs.len(), 2);
        assert_eq!(run.wait, Duration::from_secs(3));
        assert_eq!(run.backend.to_string(), "iptables-legacy");
    }

    #[test]
    fn what_nobody_can_mean_is_an_error_that_names_its_place() {
        for text in
            ["inbound-prot: 1", "inbound-port: 70000", "mode: magic", "exclude-inbound-ports: [0]", "- a", "a: ["]
        {
            let error = file(text).expect_err(text);
            assert_eq!(error.exit_code(), 2, "{text}: {error}");
        }
        let error = variables(&[("INBOUND_PROT", "1")]).unwrap_err().to_string();
        assert!(error.contains("the environment") && error.contains("inbound-prot"), "{error}");
        assert!(Settings::from_file(Path::new("/nonexistent")).unwrap_err().to_string().contains("/nonexistent"));
        file("# nothing\n").unwrap();
    }

    #[test]
    fn a_variable_wins_over_the_file_and_an_empty_one_is_none() {
        let (environment, config) =
            variables(&[("CONFIG", "/x"), ("INBOUND_PORT", "1"), ("OUTBOUND_PORT", " ")]).unwrap();
        assert_eq!(config, Some(PathBuf::from("/x")));
        let third = file("inbound-port: 2\noutbound-port: 3").unwrap();
        let mut layers = Layers { first: Settings::default(), second: environment, third };
        assert_eq!(layers.take(|layer| layer.inbound_port.take()), Some(1));
        assert_eq!(layers.take(|layer| layer.outbound_port.take()), Some(3));
    }

    #[test]
    fn a_sidecar_that_is_known_otherwise_needs_no_user() {
        let proxy = |text: &str| file(text).unwrap().resolve().unwrap().options.proxy;
        assert_eq!(proxy("mode: redirect"), Proxy::default());
        assert_eq!(proxy("proxy-gid: 5"), Proxy { uid: None, gid: Some(5), mark: None });
        assert_eq!(proxy("{proxy-gid: 5, proxy-uid: 6}"), Proxy { uid: Some(6), gid: Some(5), mark: None });
    }
}
