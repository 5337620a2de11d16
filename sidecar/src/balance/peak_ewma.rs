//! The load signal of one endpoint.

use std::{cell::Cell, time::Duration};

use tokio::time::Instant;

/// After this long an old observation weighs 1/e (Finagle's and Linkerd's decay).
const DECAY: Duration = Duration::from_secs(10);

/// What an endpoint is taken for while it has a request under way and none has ended, in seconds (Linkerd's
/// `default_rtt` is 30 ms). Below 1 ms a new endpoint would look free and be flooded before its first answer.
const SEED: f64 = 0.030;

/// A moving average of an endpoint's response time that believes bad news at once and good news slowly, and the
/// number of requests that it has under way.
///
/// An endpoint with nothing under way gets cheaper with time, so that one that was slow, or is new, is tried again: a
/// new one at once. As soon as it has a request under way it costs its full price again (what was measured, or the
/// seed), so it is probed by one request at a time and never looks free to a burst.
///
/// One that has gone silent must not live on its reputation: while requests are under way and none ends, it is taken to
/// be as slow as that has lasted, up to the seed. No further, or a request that is long by design, as a long poll,
/// would keep all others from its endpoint.
#[derive(Debug)]
pub struct PeakEwma {
    /// Seconds, as of `updated`.
    latency: Cell<f64>,
    updated: Cell<Instant>,
    /// Whether `latency` comes from a request; else it is the seed.
    measured: Cell<bool>,
    in_flight: Cell<u32>,
    /// When a request last ended or, if nothing was under way then, the first one began.
    silent_since: Cell<Instant>,
}

impl PeakEwma {
    /// A new endpoint.
    pub fn new(now: Instant) -> Self {
        Self {
            latency: Cell::new(SEED),
            updated: Cell::new(now),
            measured: Cell::new(false),
            in_flight: Cell::new(0),
            silent_since: Cell::new(now),
        }
    }

    /// A request goes to the endpoint.
    pub fn begin(&self, now: Instant) {
        let before = self.in_flight.replace(self.in_flight.get() + 1);
        if before == 0 {
            self.silent_since.set(now);
        }
    }

    /// A request that began has ended. `rtt` is the time to the response head; `None` where it says nothing about how
    /// long an answer takes: the client gave up, or the try failed. Then the endpoint keeps its price, so that a fast
    /// refusal does not make a dead endpoint the most attractive one.
    pub fn end(&self, now: Instant, rtt: Option<Duration>) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        self.silent_since.set(now);
        // Even an end that says nothing takes away the privilege of the unknown, to be tried before all others.
        let first = !self.measured.replace(true);
        let Some(rtt) = rtt.map(|d| d.as_secs_f64()) else { return };
        let latency = self.latency.get();
        self.latency.set(if first || rtt > latency {
            rtt
        } else {
            let weight = self.decay(now);
            latency * weight + rtt * (1.0 - weight)
        });
        self.updated.set(now);
    }

    /// The cost of one more request at `now`: expected latency in seconds, times the requests under way with that one.
    pub fn load(&self, now: Instant) -> f64 {
        self.latency(now) * (f64::from(self.in_flight.get()) + 1.0)
    }

    /// The expected latency at `now` in seconds: see the type for how it ages.
    pub fn latency(&self, now: Instant) -> f64 {
        let latency = self.latency.get();
        if self.in_flight.get() > 0 {
            let silence = now.saturating_duration_since(self.silent_since.get()).as_secs_f64();
            // A long stream must not freeze an old peak for ever, nor let the price fall below what is plausible.
            return (latency * self.decay(now)).max(latency.max(silence).min(SEED));
        }
        if self.measured.get() { latency * self.decay(now) } else { 0.0 }
    }

    /// How long the requests under way would take one after another, in seconds: as long as they have been under way
    /// where nothing is known of the endpoint yet.
    pub fn work_ahead(&self, now: Instant) -> f64 {
        let each = if self.measured.get() {
            self.latency(now)
        } else {
            now.saturating_duration_since(self.silent_since.get()).as_secs_f64()
        };
        f64::from(self.in_flight.get()) * each
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// How much of the last value is left at `now`: 1 at once, 1/e after [`DECAY`].
    fn decay(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.updated.get());
        if elapsed.is_zero() { 1.0 } else { (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp() }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn serve(ewma: &PeakEwma, rtt: Duration) {
        ewma.begin(Instant::now());
        ewma.end(Instant::now(), Some(rtt));
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < b * 0.01
    }

    #[tokio::test(start_paused = true)]
    async fn bad_news_is_believed_at_once_and_good_news_slowly() {
        let ewma = PeakEwma::new(Instant::now());
        serve(&ewma, ms(10));
        assert!(close(ewma.load(Instant::now()), 0.010), "the first measurement replaces the seed");
        serve(&ewma, ms(500));
        assert!(close(ewma.load(Instant::now()), 0.500), "a peak is taken as it is");
        advance(ms(100)).await;
        serve(&ewma, ms(10));
        let after = ewma.load(Instant::now());
        assert!(after > 0.490 && after < 0.500, "100 ms later one fast answer forgives 1 % of it: {after}");
        for _ in 0..600 {
            advance(ms(100)).await;
            serve(&ewma, ms(10));
        }
        assert!(ewma.load(Instant::now()) < 0.012, "a minute of fast answers forgives all");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_under_way_multiply_the_cost() {
        let ewma = PeakEwma::new(Instant::now());
        serve(&ewma, ms(10));
        (0..4).for_each(|_| ewma.begin(Instant::now()));
        assert_eq!(ewma.in_flight(), 4);
        assert!(close(ewma.load(Instant::now()), 0.050));
        (0..4).for_each(|_| ewma.end(Instant::now(), None));
        assert_eq!(ewma.in_flight(), 0);
        assert!(close(ewma.load(Instant::now()), 0.010), "an end without a measurement changes no latency");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_endpoint_is_tried_first_but_never_looks_free_to_a_burst() {
        let (fresh, known) = (PeakEwma::new(Instant::now()), PeakEwma::new(Instant::now()));
        serve(&known, ms(2));
        assert!(fresh.load(Instant::now()) < known.load(Instant::now()), "it is tried");
        fresh.begin(Instant::now());
        assert!(close(fresh.load(Instant::now()), 0.060), "and costs the seed until its first answer");
        assert!(fresh.load(Instant::now()) > known.load(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_endpoint_that_is_left_alone_is_probed_again_by_one_request_at_a_time() {
        let (slow, fast) = (PeakEwma::new(Instant::now()), PeakEwma::new(Instant::now()));
        serve(&slow, ms(2_000));
        let mut waited = 0;
        loop {
            serve(&fast, ms(5));
            if slow.load(Instant::now()) < fast.load(Instant::now()) {
                break;
            }
            advance(ms(1_000)).await;
            waited += 1;
            assert!(waited < 90, "never probed again");
        }
        assert!(waited > 30, "but not at once: after {waited} s");
        slow.begin(Instant::now());
        assert!(slow.load(Instant::now()) >= 2.0 * SEED * 0.99, "one probe under way, and it is no bargain");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_gone_silent_does_not_live_on_its_reputation() {
        let ewma = PeakEwma::new(Instant::now());
        serve(&ewma, ms(1));
        (0..3).for_each(|_| ewma.begin(Instant::now()));
        assert!(close(ewma.load(Instant::now()), 0.004));
        advance(ms(10)).await;
        assert!(close(ewma.load(Instant::now()), 0.040), "10 ms without an answer");
        advance(Duration::from_secs(60)).await;
        assert!(close(ewma.load(Instant::now()), 4.0 * SEED), "a long poll does not make it unusable");
        ewma.end(Instant::now(), Some(ms(1)));
        assert!(close(ewma.load(Instant::now()), 0.003), "an answer, and it has its reputation back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_stays_open_does_not_keep_an_old_peak_for_ever() {
        let ewma = PeakEwma::new(Instant::now());
        serve(&ewma, ms(5_000));
        ewma.begin(Instant::now());
        advance(Duration::from_secs(120)).await;
        assert!(close(ewma.load(Instant::now()), 2.0 * SEED), "down to the seed, no further");
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_says_nothing_takes_away_the_privilege_of_the_unknown() {
        let ewma = PeakEwma::new(Instant::now());
        ewma.begin(Instant::now());
        ewma.end(Instant::now(), None);
        assert!(close(ewma.load(Instant::now()), SEED));
    }
}
