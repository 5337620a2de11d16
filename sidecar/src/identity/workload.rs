//! The identity that a SPIFFE Workload API gives: taken as it comes, never kept on disk. While the agent is away, the last
//! one stays in use; only expiry ends it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use outrigger_identity::{
    SpiffeId, TrustDomain,
    workload_api::{Endpoint, Update, WorkloadApiError, X509Svid, watch},
};
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    AbortOnDrop, Identity, RevocationLists, Shared, TrustBundle, Usage, assemble, document::foreign, expiry::Expiry,
    source::TICK, trust::forged, words_for,
};
use crate::config::IdentityConfig;

/// The ceiling of the backoff doubles from the first to the last; a question that the agent does not take gets the last at
/// once. SPIFFE Workload API section 4.4 asks for backoff and names no figures; 60 s is an enrolment's too.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// A stream that has lived so long was a good one, and its end begins a new row of failures.
const STEADY: Duration = Duration::from_secs(5);

type Told = Result<Update, (WorkloadApiError, Duration)>;

/// The task's state.
pub(super) struct Workload {
    endpoint: Endpoint,
    wanted: Option<SpiffeId>,
    trust_domain: Option<TrustDomain>,
    shared: Arc<Shared>,
    current: Option<Identity>,
    generation: u64,
    expiry: Expiry,
    federated: Vec<String>,
    /// Has the agent asked anew.
    again: Arc<Notify>,
}

impl Workload {
    pub(super) fn new(config: &IdentityConfig, endpoint: Endpoint, shared: Arc<Shared>) -> Self {
        Self {
            endpoint,
            wanted: config.id.clone(),
            trust_domain: config.trust_domain.clone(),
            shared,
            current: None,
            generation: 0,
            expiry: Expiry::default(),
            federated: Vec::new(),
            again: Arc::default(),
        }
    }

    pub(super) async fn run(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (tell, mut told) = mpsc::channel(1);
        let mut asking = AbortOnDrop(None);
        loop {
            if asking.0.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                let asks = ask(self.endpoint.clone(), tell.clone(), Arc::clone(&self.again));
                asking = AbortOnDrop(Some(tokio::spawn(asks)));
            }
            let event = tokio::select! {
                _ = ticks.tick() => None,
                event = told.recv() => event,
            };
            let now = SystemTime::now();
            match event {
                Some(Ok(update)) => self.updated(update, now),
                Some(Err((error, pause))) => self.failed(&error, pause, now),
                None => {}
            }
            if let Some(identity) = &self.current {
                self.expiry.check(identity, now, "the Workload API has not given another one");
            }
        }
    }

    pub(super) fn updated(&mut self, update: Update, now: SystemTime) {
        if update.federated != self.federated {
            let of = update.federated.join(", ");
            tracing::info!(%of, "roots of other trust domains are not used: peers must belong to ours");
            self.federated = update.federated.clone();
        }
        match self.identity_of(update, now) {
            Ok(identity) => self.adopt(identity, now),
            Err(why) => {
                let error = format!("what {} gave is not taken: {why}", self.endpoint);
                let stays = if self.current.is_some() { "the identity in use stays" } else { "there is no identity" };
                tracing::error!("{error}; {stays}");
                // An agent says a thing once: what is refused for a reason that passes must be said again.
                self.again.notify_one();
                let mut notes = self.shared.notes();
                notes.renewals_failed += 1;
                notes.ca_error = Some((error, now));
            }
        }
    }

    /// The identity that we take of an update, judged as peers will judge it.
    fn identity_of(&self, update: Update, now: SystemTime) -> Result<Identity, String> {
        let ids: Vec<String> = update.svids.iter().map(|svid| svid.id.to_string()).collect();
        let is_wanted = |svid: &X509Svid| self.wanted.as_ref().is_none_or(|wanted| *wanted == svid.id);
        let Some(svid) = update.svids.into_iter().find(is_wanted) else {
            let wanted = self.wanted.as_ref().map(ToString::to_string).unwrap_or_default();
            return Err(format!("it has no {wanted}, but {}; look at identity.id and at the entry", ids.join(", ")));
        };
        let id = svid.id;
        let bundle = TrustBundle::from_der(svid.roots).map_err(|e| format!("the bundle for {id}: {e}"))?;
        for root in bundle.roots() {
            if let Some(theirs) = foreign(&root.der, &id.trust_domain()) {
                return Err(format!("the bundle for {id}: its root \"{}\" is of {theirs}", root.subject));
            }
        }
        let lists = update.revocation_lists.into_iter().map(CertificateRevocationListDer::from).collect();
        let lists = RevocationLists::from_der(lists).map_err(|e| format!("its revocation lists: {e}"))?;
        let identity = assemble::assemble(svid.chain, svid.key, bundle, self.trust_domain.as_ref())
            .map_err(|misfit| format!("{id}: {misfit}"))?;
        if identity.id != id {
            return Err(format!("the certificate for {id} is for {}", identity.id));
        }
        identity.check_valid(now).map_err(|e| e.to_string())?;
        if let Some(issuer) = forged(&lists, &identity.bundle, &identity) {
            return Err(format!("the revocation list of {issuer} is not signed by it"));
        }
        let bundle = (*identity.bundle).clone().marked(&[].into(), Arc::new(lists));
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if let Some((leaf, intermediates)) = identity.key.cert.split_first() {
            for usage in [Usage::Server, Usage::Client] {
                let verified = bundle.verify(leaf, intermediates, UnixTime::since_unix_epoch(since), usage);
                verified.map_err(|fault| format!("peers will refuse the certificate for {id}: {fault}"))?;
            }
        }
        Ok(Identity { bundle: Arc::new(bundle), ..identity })
    }

    fn adopt(&mut self, mut identity: Identity, now: SystemTime) {
        let (mut same_certificate, mut same_trust) = (false, false);
        if let Some(known) = &self.current {
            same_certificate = known.key.cert == identity.key.cert;
            same_trust = known.bundle.judges_as(&identity.bundle);
        }
        let mut notes = self.shared.notes();
        notes.ca_error = None;
        notes.trust_read = Some(now);
        if same_certificate && same_trust {
            return;
        }
        notes.renewals_ok += u64::from(!same_certificate);
        notes.warnings = assemble::doubts(&identity);
        for warning in &notes.warnings {
            tracing::warn!("{warning}");
        }
        drop(notes);
        tracing::info!(
            id = %identity.id, serial = %identity.serial, roots = ?identity.bundle,
            valid_for = %words_for(identity.not_after.duration_since(now).unwrap_or_default()),
            "identity from the Workload API"
        );
        self.generation += 1;
        identity.generation = self.generation;
        self.expiry = Expiry::default();
        self.current = Some(identity.clone());
        self.shared.publish(identity);
    }

    fn failed(&self, error: &WorkloadApiError, pause: Duration, now: SystemTime) {
        let text = error.to_string();
        let retry = format!("{:.1} s", pause.as_secs_f32());
        let mut notes = self.shared.notes();
        // Once an outage: how long it lasts, /certs says.
        let is_news = notes.ca_error.as_ref().is_none_or(|(known, _)| *known != text);
        let is_valid = self.current.as_ref().is_some_and(|identity| identity.check_valid(now).is_ok());
        match (is_news, is_valid) {
            (true, true) => tracing::warn!(%error, %retry, "the Workload API is away; the identity in use stays"),
            (true, false) => tracing::error!(%error, %retry, "there is no valid identity"),
            (false, _) => tracing::debug!(%error, %retry, "the Workload API is still away"),
        }
        notes.renewals_failed += 1;
        notes.ca_error = Some((text, now));
    }
}

/// Asks for updates and passes them on, until nobody wants them any more; `again` ends a stream whose update was refused, after
/// a while.
async fn ask(endpoint: Endpoint, tell: mpsc::Sender<Told>, again: Arc<Notify>) {
    let mut failures = 0_u32;
    loop {
        let began = Instant::now();
        let error = match watch(&endpoint).await {
            Ok(mut updates) => loop {
                // What the agent says meanwhile is heard all the same.
                let update = tokio::select! {
                    update = updates.next() => update,
                    () = async { again.notified().await; sleep(pause_after(failures, false)).await } => break None,
                };
                match update {
                    Ok(update) => {
                        if tell.send(Ok(update)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => break Some(error),
                }
            },
            Err(error) => Some(error),
        };
        if began.elapsed() > STEADY {
            failures = 0;
        }
        let pause = pause_after(failures, error.as_ref().is_some_and(|error| error.cause.is_permanent()));
        failures = failures.saturating_add(1);
        // Without an error the pause is over.
        let Some(error) = error else { continue };
        if tell.send(Err((error, pause))).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

fn pause_after(failures: u32, permanent: bool) -> Duration {
    let (first, last) = BACKOFF;
    if permanent {
        return last;
    }
    let ceiling = first.saturating_mul(1 << failures.min(16)).min(last);
    ceiling.mul_f64(fastrand::f64()).max(SHORTEST_PAUSE)
}
