//! The grammar of `serve` about tokens of Kubernetes.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use outrigger_ca::attest::DnsTemplate;

/// Where the kubelet puts a pod's own credentials.
const POD_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

#[derive(Args)]
#[command(next_help_heading = "Tokens of Kubernetes", group(ArgGroup::new("cluster").args(["k8s_api", "oidc_issuer"])))]
pub(crate) struct AttestationArgs {
    /// Ask this API server about each token (TokenReview), as https://kubernetes.default.svc
    #[arg(long, value_name = "URL")]
    pub(crate) k8s_api: Option<String>,
    /// The roots of the API server, PEM
    #[arg(long, value_name = "FILE", default_value = POD_CA, requires = "k8s_api")]
    pub(crate) k8s_ca: PathBuf,
    /// The CA's own token for the API server; read again for each question
    #[arg(long, value_name = "FILE", default_value = POD_TOKEN, requires = "k8s_api")]
    pub(crate) k8s_token_file: PathBuf,
    /// Judge tokens by their signature: their issuer, exactly as they name it ("iss")
    #[arg(long, value_name = "URL")]
    pub(crate) oidc_issuer: Option<String>,
    /// The issuer's keys (JWKS) [default: found at the issuer by OpenID Connect discovery]
    #[arg(long, value_name = "FILE", requires = "oidc_issuer", conflicts_with_all = ["oidc_ca", "oidc_token_file"])]
    pub(crate) oidc_jwks: Option<PathBuf>,
    /// The roots of the issuer's server, PEM
    #[arg(long, value_name = "FILE", default_value = POD_CA, requires = "oidc_issuer")]
    pub(crate) oidc_ca: PathBuf,
    /// A token for the issuer's server, if it wants one, as the API server does
    #[arg(long, value_name = "FILE", requires = "oidc_issuer")]
    pub(crate) oidc_token_file: Option<PathBuf>,
    /// Audience that a token must be meant for; repeatable. Istio's proxies send istio-ca
    #[arg(long = "k8s-audience", value_name = "NAME", default_value = "outrigger-ca", requires = "cluster")]
    pub(crate) audiences: Vec<String>,
    /// A DNS name that a service account may serve; repeatable. {sa} and {ns} stand for account and namespace
    #[arg(
        long = "k8s-dns",
        value_name = "RULE",
        default_values = ["{sa}.{ns}.svc.cluster.local", "{sa}.{ns}.svc"],
        requires = "cluster"
    )]
    pub(crate) dns: Vec<DnsTemplate>,
    /// Take tokens that are bound to no pod too
    #[arg(long = "k8s-allow-unbound", requires = "cluster")]
    pub(crate) allow_unbound: bool,
}
