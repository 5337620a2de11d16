//! Kubernetes service accounts: who a token speaks for, and what identity that is here.
//!
//! The id is `spiffe://<trust domain>/ns/<namespace>/sa/<account>`, as Istio and SPIRE write it. Namespace and account
//! come from whoever vouches for the token, the API server or its signing key, and from nowhere else.

use std::{fmt, str::FromStr};

use outrigger_identity::TrustDomain;
use time::OffsetDateTime;

use super::{Attested, Attestor, Refusal};
use crate::{
    authority::{Authority, Subject},
    store::CredentialKind,
};

const USER_PREFIX: &str = "system:serviceaccount:";
/// The longest name of an object in Kubernetes, in bytes (RFC 1123 subdomain).
const MAX_NAME: usize = 253;
/// The longest label of a name, in bytes; also the longest namespace.
const MAX_LABEL: usize = 63;

/// A service account, vouched for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceAccount {
    namespace: String,
    name: String,
    /// The pod that the token is bound to: name and uid.
    pub(super) pod: Option<Pod>,
    /// The token's own id (`jti`), if it has one.
    pub(super) token_id: Option<String>,
}

/// A pod, which comes and goes; a token bound to it is worth nothing after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) uid: String,
}

impl ServiceAccount {
    /// Reads a user name as the API server and the claim `sub` have it, `system:serviceaccount:<namespace>:<name>`.
    pub(super) fn from_user_name(user: &str) -> Result<Self, Refusal> {
        let fault = || {
            Refusal::token(
                "not_service_account",
                format!(
                    "it speaks for \"{}\" and not for a service account (system:serviceaccount:<namespace>:<name>); use a pod's own token",
                    printable(user)
                ),
            )
        };
        let (namespace, name) =
            user.strip_prefix(USER_PREFIX).and_then(|rest| rest.split_once(':')).ok_or_else(fault)?;
        if !is_label(namespace) || name.len() > MAX_NAME || !name.split('.').all(is_label) {
            return Err(fault());
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned(), pod: None, token_id: None })
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Namespace, account, pod and token, for the log: everything by which an operator finds the caller again.
    fn reference(&self) -> String {
        let mut text = format!("{}/{}", self.namespace, self.name);
        if let Some(pod) = &self.pod {
            text += &format!(" pod {} {}", printable(&pod.name), printable(&pod.uid));
        }
        if let Some(id) = &self.token_id {
            text += &format!(" jti {}", printable(id));
        }
        text
    }
}

/// What somebody else wrote, as one short line of plain characters.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

/// An RFC 1123 label.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= MAX_LABEL
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A rule that makes a service account's DNS name, as `{sa}.{ns}.svc.cluster.local`.
///
/// Each placeholder is a whole label and both are there, so that no two accounts get the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsTemplate(String);

/// A text is not a rule for DNS names.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a rule for DNS names: {why}; write it as {{sa}}.{{ns}}.svc.cluster.local")]
pub struct DnsTemplateError {
    text: String,
    why: &'static str,
}

impl FromStr for DnsTemplate {
    type Err = DnsTemplateError;

    fn from_str(text: &str) -> Result<Self, DnsTemplateError> {
        let fault = |why| Err(DnsTemplateError { text: text.to_owned(), why });
        if !text.split('.').all(|label| matches!(label, "{sa}" | "{ns}") || is_label(label)) {
            return fault("a label is neither {sa} nor {ns} nor of a-z, 0-9 and -");
        }
        let count = |which| text.split('.').filter(|label| *label == which).count();
        if count("{sa}") != 1 || count("{ns}") != 1 {
            return fault("it must hold {sa} and {ns} once each, or accounts of two namespaces would share a name");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DnsTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A service account with the identity that it has here.
#[derive(Debug)]
pub struct VouchedAccount {
    pub(super) kind: CredentialKind,
    subject: Subject,
    reference: String,
}

impl VouchedAccount {
    /// `account`'s identity in `trust_domain`. An account whose name has dots gets no DNS name: of such names two could
    /// be made alike.
    pub(super) fn new(
        kind: CredentialKind,
        account: &ServiceAccount,
        trust_domain: &TrustDomain,
        templates: &[DnsTemplate],
    ) -> Result<Self, Refusal> {
        let (namespace, name) = (&account.namespace, &account.name);
        let names: Vec<String> = if name.contains('.') {
            Vec::new()
        } else {
            templates.iter().map(|t| t.0.replace("{sa}", name).replace("{ns}", namespace)).collect()
        };
        let id = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{name}");
        Ok(Self { kind, subject: Subject::parse(&id, &names)?, reference: account.reference() })
    }
}

impl Attestor for VouchedAccount {
    /// All was examined before: a token of Kubernetes is good until it expires, so there is nothing to spend.
    fn attest(&self, _: &mut super::Transaction<'_>, _: &Authority, _: OffsetDateTime) -> Result<Attested, Refusal> {
        Ok(Attested { subject: self.subject.clone(), kind: self.kind, reference: self.reference.clone() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn subject(user: &str, templates: &[&str]) -> Result<Subject, Refusal> {
        let account = ServiceAccount::from_user_name(user)?;
        let templates: Vec<DnsTemplate> = templates.iter().map(|t| t.parse().unwrap()).collect();
        let domain = TrustDomain::parse("mesh.example").unwrap();
        VouchedAccount::new(CredentialKind::Kubernetes, &account, &domain, &templates).map(|v| v.subject)
    }

    #[test]
    fn an_account_becomes_an_id_and_names() {
        let templates = ["{sa}.{ns}.svc.cluster.local", "{sa}.{ns}.svc"];
        let got = subject("system:serviceaccount:shop:orders", &templates).unwrap();
        assert_eq!(got.id.as_str(), "spiffe://mesh.example/ns/shop/sa/orders");
        assert_eq!(got.dns_names, ["orders.shop.svc.cluster.local", "orders.shop.svc"]);
        // "orders.shop" of the namespace "svc" would be "orders.shop.svc" by the rule {sa}.{ns}.
        let got = subject("system:serviceaccount:svc:orders.shop", &["{sa}.{ns}"]).unwrap();
        assert_eq!(got.id.as_str(), "spiffe://mesh.example/ns/svc/sa/orders.shop");
        assert!(got.dns_names.is_empty());
    }

    #[test]
    fn what_is_not_a_service_account_is_refused() {
        let long = format!("system:serviceaccount:{}:a", "n".repeat(64));
        for user in [
            "",
            "kubernetes-admin",
            "system:node:node-1",
            "system:serviceaccount:shop",
            "system:serviceaccount::orders",
            "system:serviceaccount:shop:",
            "system:serviceaccount:shop:orders:x",
            "system:serviceaccount:shop:../admin",
            "system:serviceaccount:shop:a/b",
            "system:serviceaccount:sh.op:orders",
            "system:serviceaccount:Shop:orders",
            "system:serviceaccount:shop:orders\n",
            "system:serviceaccount:shop:ördërs",
            "system:serviceaccount:shop:-orders",
            "system:serviceaccount:shop:..",
            "system:serviceaccount:shop:%2e",
            " system:serviceaccount:shop:orders",
            &long,
        ] {
            let error = subject(user, &[]).unwrap_err();
            assert_eq!(error.reason(), "not_service_account", "{user:?}");
            assert!(error.to_string().chars().all(|c| !c.is_control()), "{error}");
        }
    }

    #[test]
    fn a_rule_that_could_give_two_accounts_one_name_is_refused() {
        for good in ["{sa}.{ns}.svc.cluster.local", "{sa}.{ns}", "api.{ns}.{sa}.mesh"] {
            good.parse::<DnsTemplate>().unwrap();
        }
        for bad in
            ["", "{sa}", "{ns}.svc", "{sa}-{ns}.mesh", "{sa}.{sa}.{ns}", "*.{sa}.{ns}", "{sa}.{ns}.", "{SA}.{ns}"]
        {
            assert!(bad.parse::<DnsTemplate>().is_err(), "{bad:?}");
        }
    }
}
