//! Makes the attestation of `serve` from its options.

use outrigger_ca::attest::{
    Attestation, ClusterVoice, Https, HttpsError, KeySource, Oidc, ServiceAccounts, TokenReview,
};

use super::{Failure, Kind};
use crate::cli::AttestationArgs;

/// What the options say. `None` of them: no tokens of Kubernetes are taken.
pub(super) fn attestation(args: AttestationArgs) -> Result<(Attestation, Option<String>), Failure> {
    if args.audiences.iter().any(|audience| audience.trim().is_empty()) {
        return Err(Failure::new(Kind::Usage, "usage", "--k8s-audience is empty; name what tokens must be meant for"));
    }
    let audiences = args.audiences;
    let (voice, told) = match (args.k8s_api, args.oidc_issuer) {
        (None, None) => return Ok((Attestation::default(), None)),
        (Some(api), _) => {
            let fault =
                |error| failure("the Kubernetes API server", "--k8s-api, --k8s-ca and --k8s-token-file", &error);
            let https = Https::new(args.k8s_ca, Some(args.k8s_token_file)).map_err(fault)?;
            let told = format!("tokens of Kubernetes are reviewed by {api}");
            let review = TokenReview::new(&api, https, audiences).map_err(fault)?;
            (ClusterVoice::TokenReview(Box::new(review)), told)
        }
        (None, Some(issuer)) => {
            let told = format!("tokens of Kubernetes are verified by the keys of {issuer}");
            let keys = match args.oidc_jwks {
                Some(file) => KeySource::File(file),
                None => {
                    let fault =
                        |error| failure("the token issuer", "--oidc-issuer, --oidc-ca and --oidc-token-file", &error);
                    let https = Https::new(args.oidc_ca, args.oidc_token_file).map_err(fault)?;
                    KeySource::discovery(issuer.clone(), https).map_err(fault)?
                }
            };
            (ClusterVoice::Oidc(Box::new(Oidc::new(issuer, audiences, keys))), told)
        }
    };
    let accounts = ServiceAccounts { voice, dns: args.dns, unbound: args.allow_unbound };
    Ok((Attestation::with_service_accounts(accounts), Some(told)))
}

fn failure(whom: &str, options: &str, error: &HttpsError) -> Failure {
    let kind = if matches!(error, HttpsError::Address(_)) { Kind::Usage } else { Kind::Failed };
    Failure::new(kind, "attestation", format!("cannot ask {whom}: {error}; look at {options}"))
}
