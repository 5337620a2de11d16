//! The one task that owns the identity: looks at the files every second, asks the CA when it is due, says loudly what fails.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use outrigger_identity::{
    TrustDomain,
    documents::{Documents, ReadError},
};
use tokio::time::MissedTickBehavior;

use super::{
    Clock, Identity, IdentityError, NotValidNow, Shared, TrustBundle, assemble,
    attempt::{Attempt, AttemptError, Issued},
    enrol::Enroller,
    expiry::Expiry,
    files::{self, Fingerprint, Material},
    follow::Reading,
    kept,
    readings::Answer,
    trust::Trust,
    words_for,
};
use crate::config::IdentityConfig;

/// How often files and deadlines are looked at. Four `stat` calls a second cost nothing; inotify would miss the symlink swaps
/// of Kubernetes and everything on network file systems.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// Smaller steps back of the wall clock change no plan worth naming.
const CLOCK_STEP: Duration = Duration::from_secs(60);

pub(super) type Fingerprints = [Option<Fingerprint>; 3];

/// The task's state.
pub(super) struct Source {
    pub(super) dir: PathBuf,
    pub(super) trust_domain: Option<TrustDomain>,
    pub(super) enroller: Option<Enroller>,
    pub(super) trust: Trust,
    pub(super) clock: Clock,
    pub(super) shared: Arc<Shared>,
    pub(super) current: Option<(Identity, Material)>,
    generation: u64,
    pub(super) seen: Fingerprints,
    // Whether `seen` is so young that another change could hide behind the same time stamps.
    pub(super) young: bool,
    // The error of a reload, until the files have been still for a tick: who replaces three files one after another passes
    // through states that do not match, and that is no news.
    pub(super) unsettled: Option<IdentityError>,
    // When a pair in the folder that is not valid yet will be.
    pub(super) look_again_at: Option<SystemTime>,
    // The serial of a certificate in the folder that was not taken.
    pub(super) passed_over: Option<String>,
    expiry: Expiry,
    last_tick: SystemTime,
}

impl Source {
    pub(super) fn new(config: &IdentityConfig, enroller: Option<Enroller>, clock: Clock, shared: Arc<Shared>) -> Self {
        Self {
            dir: config.dir.clone(),
            trust_domain: config.trust_domain.clone(),
            trust: Trust::new(enroller.as_ref().map(Enroller::follower)),
            enroller,
            clock,
            shared,
            current: None,
            generation: 0,
            seen: [None; 3],
            young: true,
            unsettled: None,
            look_again_at: None,
            passed_over: None,
            expiry: Expiry::default(),
            last_tick: SystemTime::UNIX_EPOCH,
        }
    }

    /// What is in the folder when the process starts.
    pub(super) fn first_load(&mut self) {
        let now = (self.clock)();
        self.look();
        self.look_at_lists(true);
        let trust_domain = self.trust_domain.as_ref();
        let loaded = match self.enroller {
            Some(_) => kept::load_kept(&self.dir, trust_domain, now),
            None => files::load_placed(&self.dir, trust_domain),
        };
        match loaded {
            Ok(loaded) => self.adopt(loaded.identity, loaded.material, loaded.warnings),
            // With a CA an empty folder is how every workload starts.
            Err(IdentityError::Missing(_)) if self.enroller.is_some() => {}
            Err(error) => self.complain(&error),
        }
        self.plan(false, now);
        self.check_expiry(now);
    }

    pub(super) async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut attempt: Option<Attempt> = None;
        let mut reading: Option<Reading> = None;
        loop {
            // Files are looked at while the CA is asked: it may take 20 s, a new bundle must not wait for it.
            let event = tokio::select! {
                _ = ticks.tick() => Event::Tick,
                result = finished(&mut attempt) => Event::Attempted(result),
                result = finished(&mut reading) => Event::Read(result),
            };
            let now = (self.clock)();
            match event {
                Event::Tick => {}
                Event::Attempted(result) => {
                    attempt = None;
                    match result.and_then(|issued| self.acceptable(issued)) {
                        Ok(issued) => self.renewed(issued, now),
                        Err(error) => self.renewal_failed(&error, now),
                    }
                }
                Event::Read(answer) => {
                    reading = None;
                    let kind = Answer::of(&answer);
                    self.read_from_ca(answer, now);
                    let mut notes = self.shared.notes();
                    let refused = notes.trust_error.is_some();
                    notes.readings.count(kind, refused, now);
                }
            }
            self.look_at_files(now);
            self.look_at_lists(false);
            self.check_expiry(now);
            self.check_clock(now);
            if attempt.is_none()
                && let Some(enroller) = &mut self.enroller
                && enroller.is_due(now)
            {
                let current = self.current.as_ref().map(|(identity, material)| (identity, material));
                let withdrawn = &self.trust.withdrawn;
                attempt =
                    Some(enroller.attempt(current, withdrawn, &self.dir, self.trust_domain.as_ref(), &self.clock));
            }
            if reading.is_none()
                && let Some((_, material)) = &self.current
                && let Some(follower) = self.trust.follower.as_ref().filter(|follower| follower.is_due(now))
            {
                reading = Some(follower.ask(String::from_utf8_lossy(&material.bundle_pem).into_owned()));
            }
        }
    }

    /// What the CA publishes decides, also over what somebody else wrote into the folder.
    pub(super) fn read_again(&mut self) {
        let now = (self.clock)();
        if let Some(follower) = &mut self.trust.follower {
            follower.forget(now);
        }
    }

    /// A root that the CA has dropped does not come back with a certificate: its key may be stolen.
    fn acceptable(&self, issued: Issued) -> Result<Issued, AttemptError> {
        match self.trust.withdrawn_root_of(&issued) {
            Some(root) => Err(AttemptError::Unusable {
                address: self.enroller.as_ref().map(Enroller::address).unwrap_or_default(),
                why: format!("its root \"{root}\" was taken out of the CA's bundle"),
            }),
            None => Ok(issued),
        }
    }

    fn renewed(&mut self, issued: Issued, now: SystemTime) {
        let (identity, material) = self.joined(issued);
        let is_new_root = self.current.as_ref().is_some_and(|(known, _)| !known.bundle.same_as(&identity.bundle));
        let mut warnings = Vec::new();
        if let Err(why @ NotValidNow::NotYet { .. }) = identity.check_valid(now) {
            tracing::error!("{why}; it is kept, and nothing is taken or called until then");
        }
        if let Err(error) = files::persist(&self.dir, &material) {
            let uid = nix::unistd::geteuid().as_raw();
            let warning = format!(
                "the certificate cannot be kept in {} ({error}); it lives in memory and a restart must enrol anew; make the folder writable for uid {uid}",
                self.dir.display()
            );
            tracing::warn!("{warning}");
            warnings.push(warning);
        }
        self.look();
        tracing::info!(
            id = %identity.id, serial = %identity.serial,
            valid_for = %words_for(identity.not_after.duration_since(now).unwrap_or_default()),
            "certificate issued by the CA"
        );
        let mut notes = self.shared.notes();
        notes.renewals_ok += 1;
        notes.ca_error = None;
        drop(notes);
        self.adopt(identity, material, warnings);
        if is_new_root {
            // Whether it is one for good, the CA's document says.
            self.read_again();
        }
        self.plan(true, now);
    }

    /// What was issued, with its root among those that are known already. An answer names one root, and peers may still
    /// have certificates under others: only the CA's bundle document, or an operator, takes a root away.
    fn joined(&self, issued: Issued) -> (Identity, Material) {
        let Issued { identity, mut material, ca_bundle_pem } = issued;
        let known = match &self.current {
            Some((_, current)) => &current.bundle_pem[..],
            None => ca_bundle_pem.as_bytes(),
        };
        let joined = files::join_bundles(known, &material.bundle_pem)
            .and_then(|pem| TrustBundle::from_pem(&pem).map(|bundle| (pem, bundle)));
        match joined {
            Ok((pem, bundle)) => {
                material.bundle_pem = pem;
                (Identity { bundle: Arc::new(bundle), ..identity }, material)
            }
            // The roots for the CA's server may be of a kind that no root of workloads can be.
            Err(why) => {
                tracing::warn!(%why, "the root of the new certificate stands alone: what was known cannot be joined to it");
                (identity, material)
            }
        }
    }

    fn renewal_failed(&mut self, error: &AttemptError, now: SystemTime) {
        let current = self.current.as_ref().map(|(identity, _)| identity);
        let Some(enroller) = &mut self.enroller else { return };
        let pause = enroller.failed(error, current, now);
        let due = enroller.due();
        let (permanent, ca) = (error.is_permanent(), enroller.address());
        let retry = format!("{:.1} s", pause.as_secs_f32());
        match current.and_then(|i| i.not_after.duration_since(now).ok()) {
            Some(left) if !permanent => {
                tracing::warn!(%error, %ca, %retry, certificate_left = %words_for(left), "renewal failed");
            }
            left => {
                let left = left.map_or("no valid certificate".to_owned(), words_for);
                tracing::error!(%error, %ca, %retry, certificate_left = %left, permanent, "no certificate from the CA");
            }
        }
        let mut notes = self.shared.notes();
        notes.renewals_failed += 1;
        notes.ca_error = Some((error.to_string(), now));
        notes.next_renewal = due;
    }

    pub(super) fn adopt(&mut self, identity: Identity, material: Material, mut warnings: Vec<String>) {
        let mut identity = self.trust.mark(identity);
        warnings.extend(assemble::doubts(&identity));
        self.generation += 1;
        identity.generation = self.generation;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let mut notes = self.shared.notes();
        notes.warnings = warnings;
        notes.file_error = None;
        drop(notes);
        self.unsettled = None;
        self.expiry = Expiry::default();
        self.current = Some((identity.clone(), material));
        self.shared.publish(identity);
    }

    pub(super) fn plan(&mut self, fresh: bool, now: SystemTime) {
        if let Some(enroller) = &mut self.enroller {
            enroller.plan(self.current.as_ref().map(|(identity, _)| identity), fresh, now);
            self.shared.notes().next_renewal = enroller.due();
        }
        if let (Some(follower), Some(_)) = (&mut self.trust.follower, &self.current) {
            follower.begin(now);
        }
        self.renew_if_distrusted(fresh);
    }

    pub(super) fn complain(&self, error: &IdentityError) {
        let text = error.to_string();
        let mut notes = self.shared.notes();
        if notes.file_error.as_ref().is_some_and(|(known, _)| *known == text) {
            return;
        }
        let kept = if self.current.is_some() { "the identity in use stays" } else { "there is no identity" };
        tracing::error!(error = %text, "cannot load the identity; {kept}");
        notes.file_error = Some((text, (self.clock)()));
    }

    /// A plan made by a clock that was then set back may lie years ahead.
    fn check_clock(&mut self, now: SystemTime) {
        if let Ok(back) = self.last_tick.duration_since(now)
            && back > CLOCK_STEP
        {
            tracing::warn!("the clock went back by {}, renewal is planned anew", words_for(back));
            self.plan(false, now);
            if let Some(follower) = &mut self.trust.follower {
                follower.clock_went_back(now);
            }
        }
        self.last_tick = now;
    }

    fn check_expiry(&mut self, now: SystemTime) {
        let Some((identity, _)) = &self.current else { return };
        let whose = if self.enroller.is_some() {
            "renewals have failed so far, see last_error in /certs"
        } else {
            "nobody has replaced the files yet"
        };
        self.expiry.check(identity, now, whose);
    }
}

/// What ends a wait of the task.
enum Event {
    Tick,
    Attempted(Result<Issued, AttemptError>),
    Read(Result<Documents, ReadError>),
}

async fn finished<F: Future + Unpin>(under_way: &mut Option<F>) -> F::Output {
    match under_way {
        Some(under_way) => under_way.await,
        None => std::future::pending().await,
    }
}
