//! Finding and running the tools, and reading what they complain about.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::{self, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::Error;

/// What is said of a program that a signal ended.
pub(crate) const BY_A_SIGNAL: &str = "a signal ended it";

/// A program that is there and may be run.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    path: PathBuf,
    name: String,
}

/// How a tool ended.
pub(crate) struct Ended {
    /// Whether it was content.
    pub(crate) success: bool,
    /// Its exit code, unless a signal ended it.
    pub(crate) code: Option<i32>,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error, trimmed.
    pub(crate) stderr: String,
}

impl Tool {
    /// Looks in `PATH`, then where administrators' tools live: an init container's `PATH` often lacks them.
    pub(crate) fn find(name: &str) -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        env::split_paths(&path)
            .chain(usual)
            .map(|folder| folder.join(name))
            .find(|path| is_executable(path))
            .map(|path| Self { path, name: name.to_owned() })
    }

    /// The program's name without its folder.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs it to its end with this on its standard input.
    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> Result<Ended, Error> {
        self.run_with(arguments, input, [])
    }

    /// The same, with additions to its environment.
    pub(crate) fn run_with<const N: usize>(
        &self,
        arguments: &[&str],
        input: &str,
        environment: [(&str, &OsStr); N],
    ) -> Result<Ended, Error> {
        let failed = |source| Error::System {
            what: format!("run {}", self.path.display()),
            source,
            remedy: "check that the program is whole and may be run here",
        };
        let output = Command::new(&self.path)
            .args(arguments)
            .env("LC_ALL", "C")
            .envs(environment)
            .stdin(whole(input).map_err(failed)?)
            .output()
            .map_err(failed)?;
        Ok(Ended {
            success: output.status.success(),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

/// The script as a file in memory. Through a pipe, a tool could be left with half a script when we are killed, and half
/// a script may be one that it takes.
fn whole(input: &str) -> io::Result<Stdio> {
    let mut file = File::from(memfd_create(c"script", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

impl Ended {
    /// The error that this end means, after the command line `command` was given `script`.
    pub(crate) fn refusal(&self, command: String, script: &str, remedy: &str) -> Error {
        let said = match (self.stderr.is_empty(), self.code) {
            (false, _) => self.stderr.clone(),
            (true, Some(code)) => format!("it ended with code {code} and said nothing"),
            (true, None) => BY_A_SIGNAL.to_owned(),
        };
        if ["Operation not permitted", "Permission denied", "you must be root"].iter().any(|words| said.contains(words))
        {
            return Error::NotPermitted { command, said };
        }
        let line = faulty_line(&said)
            .and_then(|number| script.lines().nth(number.checked_sub(1)?))
            .map(|line| line.trim().to_owned())
            .filter(|line| line != "COMMIT");
        Error::Refused { command, said, line, remedy: remedy.to_owned() }
    }
}

/// The line number in `/dev/stdin:11:3-9: Error`, `line 12 failed` or `Error occurred at line: 5`.
fn faulty_line(said: &str) -> Option<usize> {
    ["/dev/stdin:", "line: ", "line "].iter().find_map(|before| {
        let (_, after) = said.split_once(before)?;
        let digits = after.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    })
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_at_fault_is_found_in_every_tools_words() {
        assert_eq!(faulty_line("/dev/stdin:11:72-72: Error: Could not process rule"), Some(11));
        assert_eq!(faulty_line("iptables-restore: line 12 failed"), Some(12));
        assert_eq!(faulty_line("iptables-restore v1.8.9 (nf_tables): bad\nError occurred at line: 5\nTry"), Some(5));
        assert_eq!(faulty_line("iptables-restore v1.8.9 (nf_tables): \nline 6: RULE_INSERT failed"), Some(6));
        assert_eq!(faulty_line("something else"), None);
    }
}
