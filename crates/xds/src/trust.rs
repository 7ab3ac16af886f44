//! Trust bundles, as SDS secrets for Envoy's SPIFFE certificate validator.

use std::mem::take;

use meshfed_pki::TrustDomain;
use meshfed_proxy_config::TrustBundle;

use crate::Reason;
use crate::pb::core::{DataSource, TypedExtensionConfig, data_source::Specifier};
use crate::pb::tls::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, secret,
    spiffe_cert_validator_config::TrustDomain as Entry,
};
use crate::wire::{Path, Read, clip, name, nothing_else, pack, required, unpack};

const VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";

pub(crate) fn encode(name: &str, bundle: &TrustBundle) -> Secret {
    let entries = bundle.domains.iter().map(|(domain, pem)| Entry {
        name: domain.to_string(),
        trust_bundle: Some(DataSource {
            specifier: Some(Specifier::InlineString(pem.to_string())),
            ..Default::default()
        }),
        ..Default::default()
    });
    let validator = SpiffeCertValidatorConfig {
        trust_domains: entries.collect(),
        ..Default::default()
    };
    Secret {
        name: name.to_string(),
        r#type: Some(secret::Type::ValidationContext(
            CertificateValidationContext {
                custom_validator_config: Some(TypedExtensionConfig {
                    name: VALIDATOR.to_string(),
                    typed_config: Some(pack(&validator)),
                }),
                ..Default::default()
            },
        )),
    }
}

pub(crate) fn read(m: Secret) -> Read<(String, TrustBundle)> {
    let root = &Path::ROOT;
    let secret_name = name(&root.field("name"), m.name)?;
    let at = &root.field("validation_context");
    let Some(secret::Type::ValidationContext(mut context)) = m.r#type else {
        // Above all: never a private key.
        return Err(at.refuse(Reason::Missing));
    };
    let validator = take(&mut context.custom_validator_config);
    nothing_else(at, &context, &CertificateValidationContext::default())?;

    let at = &at.field("custom_validator_config");
    let validator = required(at, validator)?;
    if validator.name != VALIDATOR {
        return Err(at.refuse(Reason::WrongType(clip(&validator.name))));
    }
    let config = required(at, validator.typed_config)?;
    let at = &at.field("typed_config");
    let mut config: SpiffeCertValidatorConfig = unpack(at, &config)?;
    let entries = take(&mut config.trust_domains);
    nothing_else(at, &config, &SpiffeCertValidatorConfig::default())?;

    let mut bundle = TrustBundle::default();
    for (i, mut entry) in entries.into_iter().enumerate() {
        let at = &at.item("trust_domains", i);
        let text = take(&mut entry.name);
        let source = entry.trust_bundle.take();
        nothing_else(at, &entry, &Entry::default())?;
        let domain: TrustDomain = text
            .parse()
            .map_err(|e| at.field("name").refuse(Reason::BadIdentity(e)))?;
        let at = &at.field("trust_bundle");
        let mut source = required(at, source)?;
        let pem = source.specifier.take();
        nothing_else(at, &source, &DataSource::default())?;
        let Some(Specifier::InlineString(pem)) = pem else {
            return Err(at.refuse(Reason::Unsupported));
        };
        if bundle.domains.insert(domain, pem.into()).is_some() {
            return Err(at.refuse(Reason::Duplicate(clip(&text))));
        }
    }
    Ok((secret_name, bundle))
}
