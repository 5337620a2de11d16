//! Native nftables: the table `inet outrigger` holds everything, both families, and is replaced in one transaction.
//!
//! `add table; delete table; table …` in one `nft -f` is idempotent: the kernel sees the new table and the end of the
//! old one at the same moment. Connections that were redirected by the old table keep their translation, which lives
//! in connection tracking.
//!
//! By the `nft` program: of the crates that speak to nf_tables by netlink, rustables is under the GPL, nftnl binds the C
//! libraries, nf_tables knows neither `tproxy` nor `fib`, and nftables starts `nft` itself.

mod render;

pub use render::render;
pub(crate) use render::rules;

use crate::{
    Error,
    backend::DECIDING,
    command::{Ended, Tool},
    plan::Plan,
};

/// The chains of a listing that hold no rule.
pub(crate) fn empty_chains(listing: &str) -> Vec<String> {
    rules(listing).into_iter().filter(|(_, rules)| rules.is_empty()).map(|(name, _)| name).collect()
}

/// Why this backend cannot be chosen.
pub(crate) const MISSING: &str = "there is no `nft` in PATH";
const REMEDY: &str = "the kernel needs nf_tables, nft_fib and NAT for `inet` (Linux 5.2 and its modules), for --mode tproxy \
                      nft_tproxy; otherwise try --backend iptables-nft or iptables-legacy";

/// The `nft` program.
pub(crate) struct Nft {
    tool: Tool,
}

impl Nft {
    pub(crate) fn find() -> Option<Self> {
        Tool::find("nft").map(|tool| Self { tool })
    }

    /// Whether the kernel would take the rules; nothing is changed.
    pub(crate) fn check(&self, plan: &Plan) -> Result<(), Error> {
        self.apply(&["--check", "-f", "-"], &render(plan))
    }

    pub(crate) fn install(&self, plan: &Plan) -> Result<(), Error> {
        self.apply(&["-f", "-"], &render(plan))
    }

    /// Whether our table is there.
    pub(crate) fn holds_ours(&self) -> Result<bool, Error> {
        let tables = self.list(&["list", "tables", "inet"])?;
        Ok(tables.stdout.lines().any(|line| line.trim() == "table inet outrigger"))
    }

    /// `false` when the table was not there.
    pub(crate) fn remove(&self) -> Result<bool, Error> {
        if !self.holds_ours()? {
            return Ok(false);
        }
        self.run_script("delete table inet outrigger\n")?;
        Ok(true)
    }

    /// Our table as the kernel has it; empty when it is not there.
    pub(crate) fn listing(&self) -> Result<String, Error> {
        if self.holds_ours()? {
            Ok(self.list(&["--stateless", "list", "table", "inet", "outrigger"])?.stdout)
        } else {
            Ok(String::new())
        }
    }

    /// Takes out what decides about new connections and leaves what carries the open ones: the chains that the kernel
    /// calls stay, and with them its translation.
    pub(crate) fn let_drain(&self) -> Result<(), Error> {
        let chains = rules(&self.listing()?);
        let deciding = |name: &String| DECIDING.iter().any(|chain| chain.name() == name);
        let script: String = chains
            .iter()
            .map(|(name, _)| name)
            .filter(|name| deciding(name))
            .map(|name| format!("flush chain inet outrigger {name}\n"))
            .collect();
        self.run_script(&script)
    }

    /// What is in a chain or table of iptables-nft, as lines; `None` when it is not there.
    pub(crate) fn list_lines(&self, what: &[&str]) -> Result<Option<Vec<String>>, Error> {
        let ended = self.tool.run(&[&["list"], what].concat(), "")?;
        let lines = ended.stdout.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(ended.success.then(|| lines.map(str::to_owned).collect()))
    }

    /// One transaction.
    pub(crate) fn run_script(&self, script: &str) -> Result<(), Error> {
        self.apply(&["-f", "-"], script)
    }

    fn list(&self, arguments: &[&str]) -> Result<Ended, Error> {
        let ended = self.tool.run(arguments, "")?;
        if ended.success { Ok(ended) } else { Err(ended.refusal(self.line(arguments), "", REMEDY)) }
    }

    fn apply(&self, arguments: &[&str], script: &str) -> Result<(), Error> {
        let ended = self.tool.run(arguments, script)?;
        if ended.success { Ok(()) } else { Err(ended.refusal(self.line(arguments), script, REMEDY)) }
    }

    fn line(&self, arguments: &[&str]) -> String {
        format!("{} {}", self.tool.name(), arguments.join(" "))
    }
}
