//! Access logs of a stock Envoy: one line a connection, and one a request where HTTP is read.
//!
//! They change nothing about the traffic, so they are written and not read; our own proxy has its
//! own access log.

use crate::pb::accesslog::{AccessLog, access_log::ConfigType};
use crate::pb::core::{
    DataSource, SubstitutionFormatString, data_source::Specifier,
    substitution_format_string::Format,
};
use crate::pb::stream_log::{StdoutAccessLog, stdout_access_log::AccessLogFormat};
use crate::wire::pack;

const STDOUT: &str = "envoy.access_loggers.stdout";

const CONNECTION: &str = "time=%START_TIME% kind=connection \
    client=%DOWNSTREAM_REMOTE_ADDRESS% local=%DOWNSTREAM_LOCAL_ADDRESS% \
    sni=\"%REQUESTED_SERVER_NAME%\" peer=\"%DOWNSTREAM_PEER_URI_SAN%\" tls=%DOWNSTREAM_TLS_VERSION% \
    chain=\"%FILTER_CHAIN_NAME%\" cluster=\"%UPSTREAM_CLUSTER%\" upstream=%UPSTREAM_HOST% \
    received=%BYTES_RECEIVED% sent=%BYTES_SENT% duration_ms=%DURATION% flags=%RESPONSE_FLAGS% \
    end=\"%CONNECTION_TERMINATION_DETAILS%\" \
    downstream_tls=\"%DOWNSTREAM_TRANSPORT_FAILURE_REASON%\" \
    upstream_tls=\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\"\n";

const REQUEST: &str = "time=%START_TIME% kind=request \
    client=%DOWNSTREAM_REMOTE_ADDRESS% peer=\"%DOWNSTREAM_PEER_URI_SAN%\" method=%REQ(:METHOD)% \
    authority=\"%REQ(:AUTHORITY)%\" path=\"%PATH(NQ)%\" protocol=%PROTOCOL% \
    status=%RESPONSE_CODE% details=\"%RESPONSE_CODE_DETAILS%\" route=\"%ROUTE_NAME%\" \
    cluster=\"%UPSTREAM_CLUSTER%\" upstream=%UPSTREAM_HOST% received=%BYTES_RECEIVED% \
    sent=%BYTES_SENT% duration_ms=%DURATION% flags=%RESPONSE_FLAGS%\n";

/// One line when a connection ends, whatever became of it.
pub(crate) fn connections() -> Vec<AccessLog> {
    log(CONNECTION)
}

pub(crate) fn requests() -> Vec<AccessLog> {
    log(REQUEST)
}

fn log(format: &str) -> Vec<AccessLog> {
    let format = SubstitutionFormatString {
        format: Some(Format::TextFormatSource(DataSource {
            specifier: Some(Specifier::InlineString(format.to_string())),
            ..Default::default()
        })),
        ..Default::default()
    };
    vec![AccessLog {
        name: STDOUT.to_string(),
        config_type: Some(ConfigType::TypedConfig(pack(&StdoutAccessLog {
            access_log_format: Some(AccessLogFormat::LogFormat(format)),
        }))),
        ..Default::default()
    }]
}
