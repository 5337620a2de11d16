//! A rule: what is done with the requests that take it.

use std::time::Duration;

use http::{StatusCode, uri::PathAndQuery};

use super::{
    cors::CorsPolicy,
    headers::HeaderChanges,
    url::{Redirect, Rewrite},
};
use crate::config::{
    FaultAbort, Fraction, GrpcCode, Host, PathNormalization, Percent, RouteFilter, RouteName, RouteRetry, RouteRule,
    RouteTimeouts,
};

/// A service that requests go to.
#[derive(Debug)]
pub struct Backend {
    /// Its name or host.
    pub name: Host,
    /// Its port, where that was given.
    pub port: Option<u16>,
    /// The sum of the weights up to and with its own.
    pub upto: u32,
}

/// A service that gets copies.
#[derive(Debug)]
pub struct Mirror {
    /// Its name or host.
    pub name: Host,
    /// Its port, where that was given.
    pub port: Option<u16>,
    /// Of which requests.
    pub share: Share,
}

/// A delay on purpose.
#[derive(Debug)]
pub struct Delay {
    /// How long.
    pub time: Duration,
    /// Of which requests.
    pub share: Share,
}

/// An answer on purpose.
#[derive(Debug)]
pub struct Abort {
    /// Its status.
    pub status: StatusCode,
    /// Its status for a gRPC call.
    pub grpc: GrpcCode,
    /// Of which requests.
    pub share: Share,
}

/// A share of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    numerator: u32,
    denominator: u32,
}

impl Share {
    fn of(percent: Option<Percent>, fraction: Option<Fraction>) -> Self {
        match (fraction, percent) {
            (Some(f), _) => Self { numerator: f.numerator, denominator: f.denominator.max(1) },
            (None, Some(percent)) => Self { numerator: u32::from(percent.get()), denominator: 100 },
            (None, None) => Self { numerator: 1, denominator: 1 },
        }
    }

    /// Whether this one belongs to it: at random, with the probability that the share says.
    pub fn takes(self) -> bool {
        self.numerator >= self.denominator || fastrand::u32(..self.denominator) < self.numerator
    }
}

/// What is done with the requests that take it.
#[derive(Debug)]
pub struct Rule {
    /// Its route, in metrics and logs.
    pub route: RouteName,
    /// Its timeouts, where it has its own.
    pub timeouts: RouteTimeouts,
    /// Its retries, where it has its own.
    pub retry: RouteRetry,
    /// Where they go; none: to the service that was called.
    pub backends: Option<Box<[Backend]>>,
    /// Who gets copies.
    pub mirrors: Box<[Mirror]>,
    /// What is changed of the request's headers.
    pub request_headers: Option<HeaderChanges>,
    /// What is changed of the response's headers.
    pub response_headers: Option<HeaderChanges>,
    /// Where its callers are sent.
    pub redirect: Option<Redirect>,
    /// What is changed of the request's URL.
    pub rewrite: Option<Rewrite>,
    /// What it says about other origins.
    pub cors: Option<CorsPolicy>,
    /// What is delayed.
    pub delay: Option<Delay>,
    /// What is answered on purpose.
    pub abort: Option<Abort>,
}

impl Rule {
    /// Compiles a rule of the route of this name.
    pub fn compile(route: &RouteName, from: &RouteRule, normal: PathNormalization) -> Result<Self, String> {
        let mut rule = Self {
            route: route.clone(),
            timeouts: from.timeouts.clone(),
            retry: from.retry.clone(),
            backends: from.backend_refs.as_ref().map(|refs| {
                let mut upto = 0;
                refs.iter()
                    .map(|r| {
                        upto += r.weight;
                        Backend { name: r.name.clone(), port: r.port, upto }
                    })
                    .collect()
            }),
            mirrors: Box::default(),
            request_headers: None,
            response_headers: None,
            redirect: None,
            rewrite: None,
            cors: None,
            delay: None,
            abort: None,
        };
        let mut mirrors = Vec::new();
        for filter in &from.filters {
            rule.add(filter, normal, &mut mirrors)?;
        }
        rule.mirrors = mirrors.into();
        Ok(rule)
    }

    fn add(
        &mut self,
        filter: &RouteFilter,
        normal: PathNormalization,
        mirrors: &mut Vec<Mirror>,
    ) -> Result<(), String> {
        if let Some(changes) = &filter.request_header_modifier {
            self.request_headers = Some(HeaderChanges::compile(changes));
        }
        if let Some(changes) = &filter.response_header_modifier {
            self.response_headers = Some(HeaderChanges::compile(changes));
        }
        if let Some(redirect) = &filter.request_redirect {
            self.redirect = Some(Redirect::compile(redirect, normal)?);
        }
        if let Some(rewrite) = &filter.url_rewrite {
            self.rewrite = Some(Rewrite::compile(rewrite, normal)?);
        }
        if let Some(mirror) = &filter.request_mirror {
            let (name, port) = (mirror.backend_ref.name.clone(), mirror.backend_ref.port);
            mirrors.push(Mirror { name, port, share: Share::of(mirror.percent, mirror.fraction) });
        }
        if let Some(cors) = &filter.cors {
            self.cors = Some(CorsPolicy::compile(cors)?);
        }
        if let Some(fault) = &filter.fault_injection {
            self.delay = fault
                .delay
                .as_ref()
                .map(|delay| Delay { time: delay.fixed_delay.get(), share: Share::of(delay.percent, delay.fraction) });
            self.abort = fault.abort.as_ref().map(abort).transpose()?;
        }
        Ok(())
    }

    /// Which of its backends the next request goes to, at random by their weights; none where all weights are 0.
    pub fn pick(backends: &[Backend]) -> Option<usize> {
        let total = backends.last()?.upto;
        if total == 0 {
            return None;
        }
        let drawn = if backends.len() == 1 { 0 } else { fastrand::u32(..total) };
        backends.iter().position(|b| drawn < b.upto)
    }
}

fn abort(from: &FaultAbort) -> Result<Abort, String> {
    let number = from.http_status.unwrap_or(503);
    let status = StatusCode::from_u16(number).map_err(|_| format!("{number} is not a status"))?;
    let grpc = from.grpc_status.unwrap_or_else(|| GrpcCode::of_http(number));
    Ok(Abort { status, grpc, share: Share::of(from.percent, from.fraction) })
}

/// A path with the query of `before`.
pub(super) fn with_query(path: &str, before: &str) -> Option<PathAndQuery> {
    if before.is_empty() {
        return PathAndQuery::try_from(path).ok();
    }
    PathAndQuery::from_maybe_shared(bytes::Bytes::from([path, "?", before].concat())).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn backends(weights: &[u32]) -> Vec<Backend> {
        let mut upto = 0;
        let name = Host::parse("a.mesh").unwrap();
        let backend = |w: &u32| {
            upto += w;
            Backend { name: name.clone(), port: None, upto }
        };
        weights.iter().map(backend).collect()
    }

    #[test]
    fn picks_follow_the_weights() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        fastrand::seed(seed);
        const PICKS: u32 = 100_000;
        for weights in [&[1, 1][..], &[90, 10], &[0, 5, 0, 1], &[1, 999], &[7]] {
            let all = backends(weights);
            let mut counts = vec![0_u32; weights.len()];
            (0..PICKS).for_each(|_| counts[Rule::pick(&all).unwrap()] += 1);
            let total: u32 = weights.iter().sum();
            // Pearson's chi-square; 27.9 is its 0.999999 quantile for two degrees of freedom and more than that for one.
            let mut chi = 0.0;
            for (count, weight) in counts.iter().zip(weights) {
                let expected = f64::from(PICKS) * f64::from(*weight) / f64::from(total);
                if *weight == 0 {
                    assert_eq!(*count, 0, "{weights:?}: {counts:?}");
                } else {
                    chi += (f64::from(*count) - expected).powi(2) / expected;
                }
            }
            assert!(chi < 27.9, "{weights:?}: {counts:?}, chi-square {chi}");
        }
        assert_eq!(Rule::pick(&backends(&[0, 0])), None);
    }

    #[test]
    fn a_share_takes_as_many_as_it_says() {
        let share = |numerator, denominator| Share { numerator, denominator };
        let taken = |share: Share| (0..100_000).filter(|_| share.takes()).count();
        assert_eq!((taken(share(0, 100)), taken(share(1, 1))), (0, 100_000));
        let quarter = taken(share(1, 4));
        assert!((24_000..26_000).contains(&quarter), "{quarter}");
    }
}
