//! Logs and traces. Logs go to stderr: for people on a terminal, JSON elsewhere. Traces are sampled *before* a span is made,
//! because a span costs about a microsecond even when it is thrown away later: use [`batch_span`], one a batch, never one
//! a message.

use std::{
    cell::Cell,
    io::{self, IsTerminal},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::Span;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, LevelFilter, filter_fn},
    fmt,
    layer::SubscriberExt,
};

use crate::config::{Reader, Setting};

/// Target of the spans that are exported; log lines never have it.
const TRACE_TARGET: &str = "penstock::trace";
/// Longest wait for the exporter when the process ends.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// One batch of so many gets a span; 0: none does.
static EVERY: AtomicU32 = AtomicU32::new(0);

/// Settings of every program.
pub const SETTINGS: &[Setting] = &[
    Setting::new("log", "log.filter", "FILTER", "What is logged, like info,penstock_router=debug").or("info"),
    Setting::new("log-format", "log.format", "auto|human|json", "auto: human on a terminal, else json")
        .or("auto"),
    Setting::new(
        "otlp-endpoint",
        "trace.otlp_endpoint",
        "URL",
        "Where traces go (OTLP over gRPC), like http://127.0.0.1:4317",
    ),
    Setting::new("trace-every", "trace.every", "N", "One batch of N is traced; 0: none").or("1000"),
];

/// How logs look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Human,
    Json,
}

/// Settings of logs and traces.
#[derive(Debug)]
pub struct TelemetryConfig {
    filter: String,
    format: Format,
    otlp_endpoint: Option<String>,
    every: u32,
}

impl TelemetryConfig {
    /// Reads [`SETTINGS`].
    pub fn read(reader: &mut Reader) -> Self {
        let filter: String = reader.value("log");
        if let Err(error) = EnvFilter::try_new(&filter) {
            reader.fault("log", &format!("{filter:?} is no filter: {error}"));
        }
        let format = match reader.value::<String>("log-format").as_str() {
            "human" => Format::Human,
            "json" => Format::Json,
            "auto" if io::stderr().is_terminal() => Format::Human,
            "auto" => Format::Json,
            other => {
                reader.fault("log-format", &format!("{other:?} is not auto, human or json"));
                Format::Json
            }
        };
        let otlp_endpoint = reader.optional("otlp-endpoint").or_else(|| reader.otlp_endpoint());
        Self { filter, format, otlp_endpoint, every: reader.value("trace-every") }
    }
}

/// Logs or traces could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The endpoint is no URL that the exporter takes.
    #[error("--otlp-endpoint {endpoint}: {reason}")]
    Exporter {
        /// As given.
        endpoint: String,
        /// The exporter's words.
        reason: String,
    },
    /// Something else in this process logs already.
    #[error("logging is set up already")]
    Twice,
}

/// Keeps the exporter; flush it when the process ends.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Sets up logs and traces of this process. Call it on a runtime: the exporter sends from there.
pub fn start(program: &'static str, config: &TelemetryConfig) -> Result<Telemetry, TelemetryError> {
    let provider = config.otlp_endpoint.as_deref().map(|endpoint| exporter(program, endpoint)).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        let tracer = provider.tracer("penstock");
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        layer.with_filter(
            filter_fn(|metadata| metadata.target() == TRACE_TARGET).with_max_level_hint(LevelFilter::INFO),
        )
    });
    // A filter without a level hint would let every callsite of every library through to the dynamic check.
    let no_spans = filter_fn(|metadata| !metadata.is_span()).with_max_level_hint(LevelFilter::TRACE);
    let lines = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = fmt_layer(config.format).with_filter(lines.and(no_spans));
    let subscriber = tracing_subscriber::registry().with(lines).with(traces);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Twice)?;
    EVERY.store(if provider.is_some() { config.every } else { 0 }, Ordering::Relaxed);
    Ok(Telemetry { provider })
}

fn fmt_layer(format: Format) -> Box<dyn Layer<Registry> + Send + Sync> {
    let layer = fmt::layer().with_writer(io::stderr);
    match format {
        Format::Human => layer.with_ansi(io::stderr().is_terminal()).with_target(false).boxed(),
        Format::Json => {
            layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
    }
}

fn exporter(program: &'static str, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(
            |error| TelemetryError::Exporter { endpoint: endpoint.to_owned(), reason: error.to_string() },
        )?;
    let resource = Resource::builder()
        .with_service_name(program)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

impl Telemetry {
    /// Sends what is left, for two seconds at most.
    pub async fn flush(self) {
        EVERY.store(0, Ordering::Relaxed);
        let Some(provider) = self.provider else { return };
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_LIMIT)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::warn!("the last traces could not be sent");
        }
    }
}

/// A span for one batch at a stage of its way, or, for all but one batch of [`SETTINGS`]' `trace-every`, a disabled one that
/// costs a load and a decrement. `records` and `bytes` can be recorded on it.
pub fn batch_span(stage: &'static str) -> Span {
    let every = EVERY.load(Ordering::Relaxed);
    if every == 0 || !sampled(every) {
        return Span::none();
    }
    tracing::info_span!(
        target: TRACE_TARGET,
        parent: None,
        "batch",
        otel.name = stage,
        records = tracing::field::Empty,
        bytes = tracing::field::Empty,
    )
}

fn sampled(every: u32) -> bool {
    thread_local!(static LEFT: Cell<u32> = const { Cell::new(0) });
    LEFT.with(|left| match left.get().checked_sub(1) {
        Some(fewer) => {
            left.set(fewer);
            false
        }
        None => {
            left.set(every - 1);
            true
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_batch_of_n_is_sampled_and_none_without_an_exporter() {
        assert_eq!((0..1_000).filter(|_| sampled(10)).count(), 100);
        assert!(batch_span("append").is_none());
    }
}
