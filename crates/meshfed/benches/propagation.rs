//! How long it takes until a new Service of one mesh can be called from the other, and until a
//! removed one cannot.
//!
//! `cargo bench -p meshfed --bench propagation`; see docs/benchmarks.md.

mod support {
    pub mod federation;
    pub mod process;
    pub mod workload;
}

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams};
use support::federation::{Federation, Gateways, NAMESPACE, apply, within};
use support::process::memory;
use support::workload::{Target, Workload, serve, sni, write_endpoint};
use tokio::time::sleep;

/// The whole run ends within this, whatever happens.
const LIMIT: Duration = Duration::from_secs(600);
/// Between two attempts to call.
const PAUSE: Duration = Duration::from_millis(2);
/// So often the same, and it is not a coincidence.
const IN_A_ROW: u32 = 5;
const DEFAULT_ROUNDS: usize = 50;
/// The most that either may take.
const TARGET: Duration = Duration::from_millis(500);

/// Every service of the namespace, on both sides.
const EXPORT: &str = r#"
apiVersion: federation.maistra.io/v1
kind: ExportedServiceSet
metadata: {name: green-mesh, namespace: red-mesh-system}
spec:
  exportRules:
  - type: NameSelector
    nameSelector: {namespace: red-mesh-bookinfo, name: "*"}
"#;
const IMPORT: &str = r#"
apiVersion: federation.maistra.io/v1
kind: ImportedServiceSet
metadata: {name: red-mesh, namespace: green-mesh-system}
spec:
  importRules:
  - type: NameSelector
    importAsLocal: false
    nameSelector: {namespace: red-mesh-bookinfo, name: "*"}
"#;

fn main() -> anyhow::Result<ExitCode> {
    // Under `cargo test` there is nothing to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let rounds = match std::env::var("MESHFED_BENCH_PROPAGATION_ROUNDS") {
        Ok(text) => text
            .parse()
            .context("the number of rounds makes no sense")?,
        Err(_) => DEFAULT_ROUNDS,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut stop = meshfed_runtime::shutdown_signal()?;
        tokio::select! {
            done = tokio::time::timeout(LIMIT, run(rounds)) => {
                done.context("the benchmark did not end in time")?.map(|()| ExitCode::SUCCESS)
            }
            _ = stop.recv() => Ok(ExitCode::FAILURE),
        }
    })
}

async fn run(rounds: usize) -> anyhow::Result<()> {
    let backend = serve(None).await?;
    let federation = Federation::start(Gateways::InMesh).await?;
    let (red, green) = (&federation.red, &federation.green);
    apply(&red.client, EXPORT).await?;
    apply(&green.client, IMPORT).await?;
    write_endpoint(&red.client, "ratings", backend).await?;
    let client = Workload::join(green).await?;
    let address = federation.egress().await?;
    let tls = client.client()?;
    let target = |service: &str| -> anyhow::Result<Target> {
        let name = sni(service, NAMESPACE)?;
        let tls = Some((tls.clone(), name));
        Ok(Target { address, tls })
    };
    until(&target("ratings")?, true).await?;
    for mesh in [red, green] {
        let used = memory(mesh.process.id())?;
        println!("{}: {used:.1} MiB in memory, federated and idle", mesh.name);
    }

    let services: Api<Service> = Api::namespaced(red.client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(red.client.clone(), NAMESPACE);
    let mut appeared = Vec::new();
    let mut disappeared = Vec::new();
    for round in 0..rounds {
        let name = format!("round-{round}");
        let target = target(&name)?;
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": name},
            "spec": {"ports": [{"name": "http", "port": 9080}]},
        }))?;
        let began = Instant::now();
        services.create(&PostParams::default(), &service).await?;
        write_endpoint(&red.client, &name, backend).await?;
        appeared.push(until(&target, true).await?.duration_since(began));

        let began = Instant::now();
        services.delete(&name, &DeleteParams::default()).await?;
        disappeared.push(until(&target, false).await?.duration_since(began));
        let slice = format!("{name}-by-hand");
        slices.delete(&slice, &DeleteParams::default()).await?;
    }
    println!("{rounds} rounds, from the request to the API; at most {TARGET:?} is wanted");
    print("callable", appeared);
    print("not callable", disappeared);
    Ok(())
}

/// Calls over new connections until that works, or does not, [`IN_A_ROW`] times; gives when the
/// first of those was done.
async fn until(target: &Target, works: bool) -> anyhow::Result<Instant> {
    within(async {
        let mut first = Instant::now();
        let mut row = 0;
        while row < IN_A_ROW {
            if target.call_once().await.is_ok() == works {
                if row == 0 {
                    first = Instant::now();
                }
                row += 1;
            } else {
                row = 0;
                sleep(PAUSE).await;
            }
        }
        first
    })
    .await
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| {
        let rank = (times.len() as f64 * share) as usize;
        let time = times.get(rank.min(times.len().saturating_sub(1)));
        time.map_or(f64::NAN, |t| t.as_secs_f64() * 1e3)
    };
    let [min, p50, p90, p99, max] = [0.0, 0.5, 0.9, 0.99, 1.0].map(at);
    let late = times.iter().filter(|time| **time > TARGET).count();
    println!(
        "{what:14} min {min:.0} ms  p50 {p50:.0} ms  p90 {p90:.0} ms  p99 {p99:.0} ms  \
         max {max:.0} ms  late {late}"
    );
}
