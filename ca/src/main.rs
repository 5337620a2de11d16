//! The command line of the bundled CA. Results go to stdout, one plain line each; everything else to stderr.

mod cli;
mod commands;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser as _;
use outrigger_ca::admin::AdminSocket;

use cli::{BundleCommand, Cli, Command, LogCommand, RevokeArgs, RotateCommand, TokenCommand};
use commands::{
    Failure, Init, Issue, Kind, Outcome, Output, Prepare, Revoke, RevokeAuthority, Serve, Sign, Verify, Which,
};
use outrigger_ca::authority::{NewRoot, SharedRoot};

/// Keys are in this process's memory: no core file of it, and nobody else of its user attaches to it.
fn hide_memory() {
    use nix::sys::{
        prctl::set_dumpable,
        resource::{Resource, setrlimit},
    };
    // Each for itself: a sandbox may refuse one of them.
    for hidden in [set_dumpable(false), setrlimit(Resource::RLIMIT_CORE, 0, 0)] {
        if let Err(why) = hidden {
            tracing::warn!(%why, "core files of this process cannot be switched off");
        }
    }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("OUTRIGGER_CA_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    hide_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let output = Output { json: cli.json };
    match run(cli.command, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.reader_gone => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(output.json);
            ExitCode::from(failure.kind.exit())
        }
    }
}

/// Help, the version, or what is wrong with the command line.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") {
        let failure = Failure::new(Kind::Usage, "usage", error.render().to_string().trim_end());
        failure.print(true);
        return ExitCode::from(failure.kind.exit());
    }
    error.exit()
}

fn run(command: Command, output: Output) -> Outcome {
    match command {
        Command::Init {
            dir,
            trust_domain,
            names,
            force,
            algorithm,
            root_ttl,
            intermediate_ttl,
            password,
            no_password,
            offline_root,
            database,
            replica: _,
            root,
            root_key,
        } => {
            let password = if no_password { None } else { password.read()? };
            let wish = Init {
                trust_domain,
                names,
                force,
                algorithm,
                root_ttl,
                intermediate_ttl,
                password,
                no_password,
                offline_root,
                database,
                // The grammar asks for both with --replica, and for --replica with either.
                shared_root: root.zip(root_key).map(|(certificate, key)| SharedRoot { certificate, key }),
            };
            commands::init(&dir, wish, output)
        }
        Command::Issue { ca, id, dns, ttl, out, force, password } => {
            let (ca, password) = (ca.read(Some(&password))?, password.read()?);
            let wish = Issue { id: &id, dns: &dns, ttl, out: &out, force, password: password.as_ref() };
            commands::issue(&ca, &wish, output)
        }
        Command::Sign { ca, csr, id, dns, ttl, out, force, password } => {
            let (ca, password) = (ca.read(Some(&password))?, password.read()?);
            let (out, password) = (out.as_deref(), password.as_ref());
            commands::sign(&ca, &Sign { csr: &csr, id: &id, dns: &dns, ttl, out, force, password }, output)
        }
        Command::Inspect { target } => commands::inspect(&target, output),
        Command::Verify { target, bundle, dir, trust_domain, crl } => {
            commands::verify(Verify { target, bundle, dir, trust_domain, crl }, output)
        }
        Command::Check { dir, password } => commands::check(&dir, password.read()?.as_ref(), output),
        Command::Status { admin_socket } => commands::status(&AdminSocket::at(&admin_socket), output),
        Command::Token { command } => match command {
            TokenCommand::Create { ca, id, dns, ttl } => {
                commands::token_create(&ca.read(None)?, &id, &dns, ttl, output)
            }
            TokenCommand::List { dir } => commands::token_list(&dir, output),
            TokenCommand::Revoke { dir, token_ref, id } => match (&token_ref, &id) {
                (Some(token_ref), _) => commands::token_revoke(&dir, &Revoke::Ref(token_ref), output),
                (None, Some(id)) => commands::token_revoke(&dir, &Revoke::Id(id), output),
                // The grammar asks for one of them.
                (None, None) => Err(Failure::new(Kind::Usage, "usage", "say which token: its REF, or --id")),
            },
        },
        Command::Serve(args) => {
            let wish = Serve {
                listen: args.listen,
                names: args.names,
                metrics_listen: args.metrics_listen.0,
                admin_socket: args.admin_socket,
                attestation: args.attestation,
                limits: args.limits.into(),
                prune_after: args.prune_after,
                password: args.password.read()?,
            };
            commands::serve(&args.dir, wish, output)
        }
        Command::Bundle { command } => bundle(command, output),
        Command::Revoke(args) => revoke(args, output),
        Command::Rotate { command } => rotate(command, output),
        Command::Log { command } => match command {
            LogCommand::List { dir } => commands::log_list(&dir, output),
            LogCommand::Verify { dir, head } => commands::log_verify(&dir, head, output),
            LogCommand::Prune { dir, older_than } => commands::log_prune(&dir, older_than, output),
        },
    }
}

fn bundle(command: BundleCommand, output: Output) -> Outcome {
    match command {
        BundleCommand::Show { dir } => commands::bundle_show(&dir, output),
        BundleCommand::Export { dir, format, out, force } => {
            commands::bundle_export(&dir, format, out.as_deref(), force, output)
        }
        BundleCommand::Set { dir, file, replace, refresh_hint } => {
            commands::bundle_set(&dir, file.as_deref(), replace, refresh_hint, output)
        }
    }
}

fn revoke(args: RevokeArgs, output: Output) -> Outcome {
    // The grammar does not see it where something else than an id is named.
    if args.id.is_none() && (args.block || args.unblock) {
        let message = "--block and --unblock are about an id; name it with --id";
        return Err(Failure::new(Kind::Usage, "usage", message));
    }
    let which = match (args.id, args.token) {
        (Some(id), _) if args.unblock => return commands::unblock(&args.dir, &id, output),
        (Some(id), _) => Which::Id { id, block: args.block },
        (None, Some(token)) => Which::Token(token),
        (None, None) => Which::Serials(args.serials),
    };
    commands::revoke(&args.dir, &which, args.reason, args.password.read()?.as_ref(), output)
}

fn rotate(command: RotateCommand, output: Output) -> Outcome {
    match command {
        RotateCommand::Status { dir } => commands::rotate_status(&dir, output),
        RotateCommand::Prepare { dir, root, root_ttl, offline_root, root_key, algorithm, ttl, password } => {
            let new_root = root.then_some(NewRoot { ttl: root_ttl, offline: offline_root });
            let wish = Prepare { new_root, root_key, algorithm, ttl, password: password.read()? };
            commands::rotate_prepare(&dir, wish, output)
        }
        RotateCommand::Activate { dir, force, password } => {
            commands::rotate_activate(&dir, password.read()?.as_ref(), force, output)
        }
        RotateCommand::Taint { dir, root } => commands::rotate_taint(&dir, &root, output),
        RotateCommand::Revoke { dir, authority, force, reason, root_key, password } => {
            let password = password.read()?;
            let wish = RevokeAuthority {
                named: &authority,
                force,
                reason,
                root_key: root_key.as_deref(),
                password: password.as_ref(),
            };
            commands::rotate_revoke(&dir, &wish, output)
        }
    }
}
