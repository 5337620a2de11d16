//! The command line as a user meets it: exit codes, and what is said where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

fn sidecar(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_outrigger-sidecar"))
        .args(args)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn check_says_ok_and_sums_up() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/config/full.yaml");
    let file = file.to_str().unwrap();
    let (code, stdout, stderr) = sidecar(&["check", "--config", file], &[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.starts_with(&format!("{file}: ok\n")) && stdout.contains("services 2"), "{stdout}");
    assert!(stderr.contains("warning: identity.ca.bundle /etc/outrigger/ca-bundle.pem: it does not exist"), "{stderr}");
    assert_eq!(sidecar(&["check"], &[("OUTRIGGER_CONFIG", file)]).1, stdout);
    let (code, stdout, _) = sidecar(&["check"], &[("OUTRIGGER_CONFIG", "")]);
    assert!(code == Some(0) && stdout.starts_with("defaults: ok\n"), "{stdout}");
}

#[test]
fn a_wrong_configuration_ends_with_2_for_both_commands() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.yaml");
    fs::write(&file, "inbound:\n  mod: strict\n").unwrap();
    let file = file.to_str().unwrap();
    for command in ["check", "run"] {
        let (code, stdout, stderr) = sidecar(&[command, "--config", file], &[]);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
        assert!(stderr.starts_with(&format!("{file}:2:3: ")) && stderr.contains("did you mean \"mode\"?"), "{stderr}");
        let (code, _, stderr) = sidecar(&[command], &[("OUTRIGGER_INBOUND_MODUS", "strict")]);
        assert!(code == Some(2) && stderr.contains("did you mean OUTRIGGER_INBOUND_MODE?"), "{stderr}");
    }
}

#[test]
fn wrong_flags_end_with_2_and_help_with_0() {
    assert_eq!(sidecar(&["run", "--confg", "x"], &[]).0, Some(2));
    assert_eq!(sidecar(&["fly"], &[]).0, Some(2));
    assert_eq!(sidecar(&[], &[]).0, Some(2));
    let (code, stdout, _) = sidecar(&["--version"], &[]);
    assert_eq!((code, stdout), (Some(0), format!("outrigger-sidecar {}\n", env!("CARGO_PKG_VERSION"))));
    let (code, stdout, _) = sidecar(&["run", "--help"], &[]);
    assert!(code == Some(0) && stdout.contains("OUTRIGGER_IDENTITY_CA_ADDRESS"), "{stdout}");
}

#[test]
fn check_warns_of_missing_files_and_open_keys() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let identity = [("OUTRIGGER_IDENTITY_DIR", dir.path().to_str().unwrap())];
    let (code, _, stderr) = sidecar(&["check"], &identity);
    assert_eq!((code, stderr.matches("it does not exist").count()), (Some(0), 3), "{stderr}");

    let (bundle, token) = (at("roots.pem"), at("token"));
    let ca = |token| {
        let mut env = vec![("OUTRIGGER_IDENTITY_CA_ADDRESS", "ca"), ("OUTRIGGER_IDENTITY_CA_BUNDLE", bundle.as_str())];
        env.extend(identity);
        env.extend(Option::map(token, |token| ("OUTRIGGER_IDENTITY_CA_TOKEN_FILE", token)));
        sidecar(&["check"], &env).2
    };
    fs::write(&bundle, "roots").unwrap();
    assert!(ca(None).contains("identity.ca.token_file is not set"), "{}", ca(None));
    fs::write(&token, "\n").unwrap();
    assert!(ca(Some(token.as_str())).contains("it is empty"));
    fs::write(&token, "secret").unwrap();
    assert_eq!(ca(Some(token.as_str())), "");

    for name in ["cert.pem", "key.pem", "bundle.pem"] {
        fs::write(at(name), "x").unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let (_, _, stderr) = sidecar(&["check"], &identity);
    assert!(stderr.contains("mode 0644 lets others read the key") && stderr.lines().count() == 1, "{stderr}");
    fs::set_permissions(at("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(sidecar(&["check"], &identity).2, "");
}
