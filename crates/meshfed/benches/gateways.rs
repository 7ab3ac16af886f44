//! The pair of gateways between two meshes, against a direct connection and against the same pair
//! in stock Envoys: the same backend and load, in alternating rounds of one run.
//!
//! `cargo bench -p meshfed --bench gateways [-- --json]`; see docs/benchmarks.md.

mod support {
    pub mod federation;
    pub mod load;
    pub mod process;
    pub mod workload;
}

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use meshfed_testkit::Envoy;
use serde_json::{Value, json};
use support::federation::{EGRESS, Federation, Gateways, INGRESS, Mesh, within};
use support::load::{self, Measured};
use support::process::{Process, memory};
use support::workload::{Target, Workload, imported, serve, sni, write_endpoint};
use tokio::time::sleep;

/// The whole run ends within this, whatever happens.
const LIMIT: Duration = Duration::from_secs(900);
const PAUSE: Duration = Duration::from_millis(50);
/// Connections are opened by so many at a time, and so many in a round at most.
const OPENERS: usize = 8;
const NEW_CONNECTIONS: usize = 1500;
const BULK_CONNECTIONS: usize = 2;
/// Gateways rest for this long before their idle memory is read.
const REST: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<ExitCode> {
    // Under `cargo test` there is nothing to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let settings = Settings::read()?;
    runtime.block_on(async {
        let mut stop = meshfed_runtime::shutdown_signal()?;
        tokio::select! {
            done = tokio::time::timeout(LIMIT, run(&settings)) => {
                done.context("the benchmark did not end in time")?.map(|()| ExitCode::SUCCESS)
            }
            _ = stop.recv() => Ok(ExitCode::FAILURE),
        }
    })
}

/// How much is measured.
struct Settings {
    rounds: u32,
    seconds: f64,
    connections: usize,
    json: bool,
}

impl Settings {
    fn read() -> anyhow::Result<Self> {
        Ok(Self {
            rounds: setting("MESHFED_BENCH_ROUNDS", 3)?,
            seconds: setting("MESHFED_BENCH_SECONDS", 3.0)?,
            connections: setting("MESHFED_BENCH_CONNECTIONS", 16)?,
            json: std::env::args().any(|argument| argument == "--json"),
        })
    }
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> anyhow::Result<T> {
    match std::env::var(name) {
        Err(_) => Ok(default),
        Ok(text) => match text.parse() {
            Ok(value) => Ok(value),
            Err(_) => anyhow::bail!("{name}={text} is no number"),
        },
    }
}

/// One way from the client to the backend, and what was seen on it.
struct Way {
    name: &'static str,
    target: Target,
    /// The egress and the ingress gateway.
    gateways: Vec<u32>,
    kept: Measured,
    fresh: Measured,
    bulk: Measured,
    idle: Vec<f64>,
    after_load: Vec<f64>,
}

impl Way {
    fn new(name: &'static str, target: Target, gateways: Vec<u32>) -> Self {
        Self {
            name,
            target,
            gateways,
            kept: Measured::default(),
            fresh: Measured::default(),
            bulk: Measured::default(),
            idle: Vec::new(),
            after_load: Vec::new(),
        }
    }

    fn memory(&self) -> anyhow::Result<Vec<f64>> {
        self.gateways.iter().map(|pid| memory(*pid)).collect()
    }
}

async fn run(settings: &Settings) -> anyhow::Result<()> {
    let threads = std::thread::available_parallelism()?.get();
    let backend = serve(None).await?;
    let direct = Target {
        address: backend,
        tls: None,
        authority: imported("ratings", "bookinfo"),
    };
    let mut ways = vec![Way::new("direct", direct, Vec::new())];

    let ours = Federation::start(Gateways::External, &[]).await?;
    write_endpoint(&ours.red.client, "ratings", backend).await?;
    let egress = own_gateway(&ours.green, EGRESS).await?;
    let ingress = own_gateway(&ours.red, INGRESS).await?;
    let client = Workload::join(&ours.green).await?;
    let behind_tls = Target {
        address: serve(Some(client.server()?)).await?,
        tls: Some((client.client()?, sni("red-ratings", "bookinfo")?)),
        authority: imported("ratings", "bookinfo"),
    };
    ways.push(Way::new("direct mTLS", behind_tls, Vec::new()));
    let target = through(&ours, &client).await?;
    ways.push(Way::new("meshfed", target, vec![egress.id(), ingress.id()]));

    let envoys = EnvoyPair::start(backend, threads).await?;
    if let Some(pair) = &envoys {
        let gateways = vec![
            pair.egress.envoy.process_id(),
            pair.ingress.envoy.process_id(),
        ];
        ways.push(Way::new("Envoy", pair.target.clone(), gateways));
    }

    eprintln!(
        "{} rounds; {} s on {} kept connections; up to {NEW_CONNECTIONS} new connections by \
         {OPENERS}; meshfed gateway and Envoy with {threads} worker threads each",
        settings.rounds, settings.seconds, settings.connections
    );
    for way in ways.iter().filter(|way| way.target.tls.is_some()) {
        let group = way.target.key_exchange().await?;
        eprintln!("{}: the client and its server agree on {group}", way.name);
    }
    measure(settings, &mut ways).await?;
    if let Some(pair) = &envoys {
        pair.check()?;
    }
    let rows = rows(&mut ways);
    if settings.json {
        println!("{:#}", as_json(&ways, &rows));
    } else {
        print(&ways, &rows);
    }
    if envoys.is_none() {
        eprintln!("Envoy: skipped, there is none");
    }
    Ok(())
}

/// Each kind of load goes over every way before the next, so that noise of the machine hits all.
async fn measure(settings: &Settings, ways: &mut [Way]) -> anyhow::Result<()> {
    sleep(REST).await;
    for way in ways.iter_mut() {
        way.idle = way.memory()?;
    }
    let time = Duration::from_secs_f64(settings.seconds);
    for way in ways.iter() {
        // Nobody's first request is in the numbers.
        let mut ignored = Measured::default();
        load::requests(&way.target, 4, time / 8, &[], &mut ignored).await?;
    }
    for round in 1..=settings.rounds {
        eprintln!("round {round} of {}", settings.rounds);
        for way in ways.iter_mut() {
            let kept = &mut way.kept;
            load::requests(&way.target, settings.connections, time, &way.gateways, kept)
                .await
                .with_context(|| format!("requests, {}", way.name))?;
        }
        for way in ways.iter_mut() {
            let (number, fresh) = (NEW_CONNECTIONS, &mut way.fresh);
            load::new_connections(&way.target, OPENERS, number, time, &way.gateways, fresh)
                .await
                .with_context(|| format!("new connections, {}", way.name))?;
        }
        for way in ways.iter_mut() {
            let (time, bulk) = (time / 3, &mut way.bulk);
            load::bulk(&way.target, BULK_CONNECTIONS, time, &way.gateways, bulk)
                .await
                .with_context(|| format!("bulk, {}", way.name))?;
        }
    }
    sleep(REST).await;
    for way in ways.iter_mut() {
        way.after_load = way.memory()?;
    }
    Ok(())
}

/// A quantity, with one value for each way; NaN where there is none.
type Row = (&'static str, Vec<f64>);

fn rows(ways: &mut [Way]) -> Vec<Row> {
    fn row(name: &'static str, ways: &mut [Way], of: impl Fn(&mut Way) -> f64) -> Row {
        (name, ways.iter_mut().map(of).collect())
    }
    /// Only gateways use anything that is counted.
    fn gateways(name: &'static str, ways: &mut [Way], of: impl Fn(&mut Way) -> f64) -> Row {
        row(name, ways, |way| match way.gateways.is_empty() {
            true => f64::NAN,
            false => of(way),
        })
    }
    fn nth(memory: &[f64], n: usize) -> f64 {
        memory.get(n).copied().unwrap_or(f64::NAN)
    }
    vec![
        row("requests/s", ways, |w| w.kept.rate()),
        row("  latency p50, ms", ways, |w| w.kept.latency(0.5)),
        row("  latency p99, ms", ways, |w| w.kept.latency(0.99)),
        gateways("  CPU of both gateways, us/request", ways, |w| {
            w.kept.cpu_us()
        }),
        row("new connections/s", ways, |w| w.fresh.rate()),
        row("  until answered p50, ms", ways, |w| w.fresh.latency(0.5)),
        row("  until answered p99, ms", ways, |w| w.fresh.latency(0.99)),
        gateways("  CPU of both gateways, us/connection", ways, |w| {
            w.fresh.cpu_us()
        }),
        row("bulk, MB/s", ways, |w| w.bulk.rate() / 1e6),
        gateways("  CPU of both gateways, ms/MB", ways, |w| {
            w.bulk.cpu_us() * 1e3
        }),
        gateways("idle memory of the egress, MiB", ways, |w| nth(&w.idle, 0)),
        gateways("idle memory of the ingress, MiB", ways, |w| nth(&w.idle, 1)),
        gateways("  after load, egress, MiB", ways, |w| nth(&w.after_load, 0)),
        gateways("  after load, ingress, MiB", ways, |w| {
            nth(&w.after_load, 1)
        }),
    ]
}

fn print(ways: &[Way], rows: &[Row]) {
    let index = |name: &str| ways.iter().position(|way| way.name == name);
    let ratios: Vec<(String, usize, usize)> = [
        ("meshfed", "direct"),
        ("Envoy", "direct"),
        ("meshfed", "Envoy"),
    ]
    .into_iter()
    .filter_map(|(a, b)| Some((format!("{a}/{b}"), index(a)?, index(b)?)))
    .collect();
    print!("{:40}", "");
    for way in ways {
        print!("{:>13}", way.name);
    }
    for (name, _, _) in &ratios {
        print!("{name:>16}");
    }
    println!();
    for (name, values) in rows {
        print!("{name:40}");
        for value in values {
            print!("{:>13}", number(*value));
        }
        for (_, a, b) in &ratios {
            print!("{:>16}", number(values[*a] / values[*b]));
        }
        println!();
    }
}

fn number(value: f64) -> String {
    match value {
        _ if value.is_nan() => "-".to_owned(),
        _ if value >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

fn as_json(ways: &[Way], rows: &[Row]) -> Value {
    let rows = rows.iter().map(|(name, values)| {
        let known = ways.iter().zip(values).filter(|(_, value)| !value.is_nan());
        let values = known.map(|(way, value)| (way.name.to_owned(), json!(value)));
        (name.trim().to_owned(), Value::Object(values.collect()))
    });
    // Two rows may have one name below different heads, so this is a list.
    let rows = rows.map(|(name, values)| json!({"quantity": name, "values": values}));
    Value::Array(rows.collect())
}

/// Writes a token for a gateway; gives the file.
async fn gateway_token(mesh: &Mesh, gateway: &str) -> anyhow::Result<std::path::PathBuf> {
    let account = format!("{gateway}-service-account");
    let token = mesh.token(&mesh.system(), &account).await?;
    let file = mesh.dir.join(format!("{gateway}.token"));
    std::fs::write(&file, token)?;
    Ok(file)
}

/// Starts a role that joins as this gateway.
async fn join(
    mesh: &Mesh,
    role: &str,
    gateway: &str,
    more: &[(&str, String)],
) -> anyhow::Result<Process> {
    let token = gateway_token(mesh, gateway).await?;
    Process::meshfed(&mesh.dir.join(format!("{gateway}.{role}.log")), |command| {
        let url = format!("https://{}", mesh.control_plane());
        command.args([role, "--control-plane", &url, "--ca"]);
        command.arg(mesh.root_cert()).arg("--token-file").arg(token);
        command.args(["--name", gateway, "--namespace", &mesh.system()]);
        for (option, value) in more {
            command.args([*option, value.as_str()]);
        }
    })
}

async fn own_gateway(mesh: &Mesh, gateway: &str) -> anyhow::Result<Process> {
    let logs = mesh.dir.join("logs").display().to_string();
    join(mesh, "gateway", gateway, &[("--log-dir", logs)]).await
}

/// The way to ratings of red-mesh; waits until a call gets through.
async fn through(federation: &Federation, client: &Workload) -> anyhow::Result<Target> {
    let target = Target {
        address: federation.egress().await?,
        tls: Some((client.client()?, sni("red-ratings", "bookinfo")?)),
        authority: imported("ratings", "bookinfo"),
    };
    within(async {
        while target.call_once().await.is_err() {
            sleep(PAUSE).await;
        }
    })
    .await
    .context("no call got through the gateways")?;
    Ok(target)
}

/// A stock Envoy and the agent beside it.
struct EnvoyGateway {
    envoy: Envoy,
    _agent: Process,
}

impl EnvoyGateway {
    /// `None`: there is no Envoy.
    async fn start(mesh: &Mesh, gateway: &str, threads: usize) -> anyhow::Result<Option<Self>> {
        let dir = mesh.dir.join(format!("{gateway}.agent"));
        let admin = SocketAddr::new(mesh.net.address(3), 15000);
        let options = [
            ("--dir", dir.display().to_string()),
            ("--envoy-admin", admin.to_string()),
        ];
        let agent = join(mesh, "agent", gateway, &options).await?;
        let bootstrap = within(async {
            loop {
                match std::fs::read_to_string(dir.join("envoy.json")) {
                    Ok(text) => break text,
                    Err(_) => sleep(PAUSE).await,
                }
            }
        })
        .await?;
        let envoy = Envoy::start_with(&bootstrap, admin, threads, &[]);
        Ok(envoy.map(|envoy| Self {
            envoy,
            _agent: agent,
        }))
    }
}

/// Two meshes with Envoys for gateways.
struct EnvoyPair {
    target: Target,
    egress: EnvoyGateway,
    ingress: EnvoyGateway,
    _federation: Federation,
}

impl EnvoyPair {
    async fn start(backend: SocketAddr, threads: usize) -> anyhow::Result<Option<Self>> {
        if tokio::task::spawn_blocking(meshfed_testkit::tools::envoy_or_skip)
            .await?
            .is_none()
        {
            return Ok(None);
        }
        let federation = Federation::start(Gateways::External, &[]).await?;
        write_endpoint(&federation.red.client, "ratings", backend).await?;
        let egress = EnvoyGateway::start(&federation.green, EGRESS, threads).await?;
        let ingress = EnvoyGateway::start(&federation.red, INGRESS, threads).await?;
        let (Some(egress), Some(ingress)) = (egress, ingress) else {
            return Ok(None);
        };
        let client = Workload::join(&federation.green).await?;
        Ok(Some(Self {
            target: through(&federation, &client).await?,
            egress,
            ingress,
            _federation: federation,
        }))
    }

    /// # Errors
    ///
    /// An Envoy complained about something, so that the comparison may not be fair.
    fn check(&self) -> anyhow::Result<()> {
        for gateway in [&self.egress, &self.ingress] {
            let warnings = gateway.envoy.warnings();
            anyhow::ensure!(warnings.is_empty(), "Envoy complains: {warnings:#?}");
        }
        Ok(())
    }
}
