//! Where it runs: containers, other namespaces, without privilege, with whatever tools there are.

use std::{os::unix::process::CommandExt, process::Command};

use nix::unistd::{Gid, Uid};

use crate::{
    matrix::options,
    support::{Namespace, ROOT, Tools, said, state},
};

#[test]
fn auto_says_what_it_chose_and_why_and_cleans_up_after_another_backend() {
    let (pod, tools) = (Namespace::new(), Tools::iptables("iptables-nft"));
    let before = state(&pod);
    let output = tools.outrigger(&pod, "install");
    assert!(output.status.success() && said(&output).contains("done with nft: nft is here"), "{}", said(&output));
    let with_nft = state(&pod);

    // With an nft that does not work, iptables takes over; the next run with a working one takes it back.
    let broken = Tools::iptables("iptables-nft");
    broken.replace("nft", "echo 'nft: cannot work today' >&2; exit 1");
    let output = broken.outrigger(&pod, "install");
    let words = said(&output);
    assert!(output.status.success() && words.contains("done with iptables"), "{words}");
    assert!(words.contains("cannot work today") && words.contains("(nf_tables)"), "{words}");
    let output = tools.outrigger(&pod, "install --json");
    let report = said(&output);
    assert!(report.contains(r#""backends":["nft"]"#) && report.contains("removed an earlier set"), "{report}");
    let ours = state(&pod);
    assert!(!ours.contains("OUTRIGGER_"), "rules of iptables remain:\n{ours}");
    assert!(ours.contains(with_nft.split("table ip").next().unwrap()), "{ours}");

    // Legacy rules are found too, without asking legacy tables into being when there are none.
    assert!(!ours.contains("*nat"), "looking has registered a legacy table:\n{ours}");
    Tools::iptables("iptables-legacy").must(&pod, "install");
    assert!(state(&pod).contains("-j OUTRIGGER_INBOUND") && !state(&pod).contains("table inet outrigger"));
    let output = tools.outrigger(&pod, "remove");
    assert!(output.status.success(), "{}", said(&output));
    let after = state(&pod);
    assert!(!after.contains("OUTRIGGER") && !after.contains("outrigger") && !after.contains("::6"), "{after}");
    assert!(!before.contains("::6"));

    // Where there is nothing of ours, an address that somebody else has added is theirs.
    pod.sh("ip -6 addr add ::6/128 dev lo");
    let output = tools.outrigger(&pod, "remove");
    assert!(output.status.success() && state(&pod).contains("::6/128"), "{}", said(&output));
}

/// An init container: read-only root, so no lock file; only NET_ADMIN and NET_RAW.
#[test]
fn a_read_only_root_and_two_capabilities_are_enough() {
    for tools in [Tools::nft(), Tools::iptables("iptables-nft"), Tools::iptables("iptables-legacy")] {
        let pod = Namespace::new();
        let program = env!("CARGO_BIN_EXE_outrigger-iptables");
        let output = pod.sh(&format!(
            "PATH={}; unshare -m sh -ec 'mount -t tmpfs -o ro none /run
             exec setpriv --bounding-set=-all,+net_admin,+net_raw --inh-caps=-all,+net_admin,+net_raw \
                {program} install --backend {} 2>&1'",
            tools.path(),
            tools.backend
        ));
        assert!(output.contains("install: done"), "{output}");
        assert!(state(&pod).to_lowercase().contains("outrigger") && state(&pod).contains("::6/128"));
    }
}

#[test]
fn another_namespace_is_entered_and_this_one_left_alone() {
    let (here, there, tools) = (Namespace::new(), Namespace::new(), Tools::nft());
    let before = (state(&here), state(&there));
    tools.must(&here, &format!("install --netns {}", there.path()));
    let output = tools.outrigger(&here, &format!("verify --netns {}", there.path()));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(state(&here), before.0);
    assert!(state(&there).contains("table inet outrigger"));
    tools.must(&here, &format!("remove --netns {}", there.path()));
    assert_eq!(state(&there), before.1);
    let output = tools.outrigger(&here, "install --netns /dev/null");
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
}

#[test]
fn without_privilege_print_works_and_install_says_what_is_missing() {
    let pod = Namespace::new();
    let before = state(&pod);
    let nobody = |command: &str| {
        pod.run(ROOT, || {
            // setuid in the child drops its capabilities; the path must be reachable for nobody, so a copy is run.
            let folder =
                tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir();
            let copy = folder.as_ref().unwrap().path().join("outrigger-iptables");
            std::fs::copy(env!("CARGO_BIN_EXE_outrigger-iptables"), &copy).unwrap();
            let (uid, gid) = (Uid::from_raw(65534).as_raw(), Gid::from_raw(65534).as_raw());
            Command::new(copy).args(command.split(' ')).uid(uid).gid(gid).output().unwrap()
        })
    };
    for command in ["status", "verify", "remove"] {
        let output = nobody(command);
        assert_eq!(output.status.code(), Some(3), "{command}: {}", said(&output));
    }
    for backend in ["auto", "nft", "iptables-nft", "iptables-legacy"] {
        let output = nobody(&format!("install --backend {backend}"));
        let words = said(&output);
        assert_eq!(output.status.code(), Some(3), "{backend}: {words}");
        assert!(words.contains("NET_ADMIN"), "{backend}: {words}");
        let output = nobody(&format!("print --backend {backend} --exclude-outbound-ports 3306"));
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("3306"),
            "{}",
            said(&output)
        );
    }
    assert_eq!(state(&pod), before);
}

/// What `print` shows is what the tools take: the printed script alone does what `install` does.
#[test]
fn what_is_printed_is_what_is_installed() {
    let (printed, installed, tools) = (Namespace::new(), Namespace::new(), Tools::nft());
    let output = tools.outrigger(&printed, &format!("print --backend nft {}", options()));
    let script = tools.folder.path().join("script");
    std::fs::write(&script, &output.stdout).unwrap();
    printed.sh(&format!("nft -f {}", script.display()));
    tools.must(&installed, &format!("install {}", options()));
    assert_eq!(printed.sh("nft list ruleset"), installed.sh("nft list ruleset"));
    assert!(printed.sh("nft list ruleset").contains("table inet outrigger"));
}

/// Programs read one object from standard output, whatever the command and its outcome.
#[test]
fn every_command_speaks_json() {
    let (pod, tools) = (Namespace::new(), Tools::nft());
    for (command, code, key) in [
        ("status --json", 10, "state"),
        ("print --json --backend iptables-legacy", 0, "scripts"),
        ("verify --json", 9, "checks"),
        ("install --json", 0, "backends"),
        ("verify --json", 0, "checks"),
        ("status --json", 0, "state"),
        ("install --json --inbound-port 15001", 2, "error"),
        ("install --json --netns /dev/null", 7, "error"),
        ("remove --json --drain 1s", 0, "backends"),
        ("remove --json", 0, "why"),
    ] {
        let output = tools.outrigger(&pod, command);
        assert_eq!(output.status.code(), Some(code), "{command}: {}", said(&output));
        let object: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{command}: {error}: {}", said(&output)));
        assert!(object.get(key).is_some(), "{command}: no {key:?} in {object}");
        if key == "error" {
            assert_eq!(object["exit_code"], code, "{command}");
        }
    }
}

/// As an init container is told: by a file and variables, the flag above both.
#[test]
fn options_come_from_the_file_the_environment_and_the_command_line() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("iptables.yaml");
    std::fs::write(&file, "inbound-port: 1001\noutbound-port: 1002\nproxy-uid: 1003\nbackend: nft\njson: false\n")
        .unwrap();
    let run = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger-iptables"));
        command.arg("print").args(arguments).env("OUTRIGGER_IPTABLES_CONFIG", &file).envs(variables.iter().copied());
        command.output().unwrap()
    };
    let output = run(
        &[("OUTRIGGER_IPTABLES_OUTBOUND_PORT", "2002"), ("OUTRIGGER_IPTABLES_PROXY_UID", "2003")],
        &["--proxy-uid", "3003"],
    );
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for wanted in ["redirect to :1001", "redirect to :2002", "meta skuid 3003", "table inet outrigger"] {
        assert!(text.contains(wanted), "{wanted:?} is not in {text}");
    }
    let output = run(&[("OUTRIGGER_IPTABLES_INBOUND_PROT", "1")], &[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("inbound-prot"), "{}", said(&output));
}

/// A network namespace that belongs to a user without any privilege outside.
#[test]
fn in_a_user_namespace_of_nobody_nft_works() {
    let folder =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let copy = folder.path().join("outrigger-iptables");
    std::fs::copy(env!("CARGO_BIN_EXE_outrigger-iptables"), &copy).unwrap();
    let program = copy.display();
    let script = format!(
        "ip link set lo up; {program} install --backend nft && {program} verify; {program} status; {program} remove; {program} status"
    );
    let output = Command::new("unshare")
        .args(["-Urn", "sh", "-c", &script])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let words = said(&output);
    for wanted in ["verify: the redirection works", "status: installed", "status: absent"] {
        assert!(words.contains(wanted), "{wanted:?} is not in {words}");
    }
}
