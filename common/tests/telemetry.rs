//! Traces reach a collector over OTLP, sampled, and are flushed when the process ends. One test: what logs in a process is
//! set once.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
};
use penstock_common::{
    config::{Asked, Program},
    net, telemetry,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const PROGRAM: Program =
    Program { name: "prog", about: "Tests.", examples: "", settings: &[telemetry::SETTINGS] };

struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).await.map_err(|_| Status::cancelled("the test is over"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (String, mpsc::Receiver<ExportTraceServiceRequest>) {
    let listener = net::listen(([127, 0, 0, 1], 0).into(), false).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, received) = mpsc::channel(16);
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (endpoint, received)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_batch_of_n_reaches_the_collector_when_the_process_ends() {
    let (endpoint, mut received) = collector().await;
    // The endpoint in OpenTelemetry's own variable serves as well as the flag.
    let environment = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.clone());
    let asked = PROGRAM.ask_with(["prog", "--trace-every", "10", "--log", "error"], &environment);
    let Ok(Asked::Run(mut reader)) = asked else { panic!("{asked:?}") };
    let config = telemetry::TelemetryConfig::read(&mut reader);
    reader.finish().unwrap();

    let running = telemetry::start("prog", &config).unwrap();
    let spans: Vec<_> = (0..100).map(|_| telemetry::batch_span("append")).collect();
    for span in spans.iter().filter(|span| !span.is_none()) {
        span.record("records", 7);
        tracing::info!("a line is no trace");
    }
    assert_eq!(spans.iter().filter(|span| !span.is_none()).count(), 10);
    drop(spans);
    running.flush().await;

    let request = tokio::time::timeout(Duration::from_secs(5), received.recv()).await.unwrap().unwrap();
    let resource = request.resource_spans.first().unwrap();
    let spans: Vec<_> = resource.scope_spans.iter().flat_map(|scope| &scope.spans).collect();
    assert_eq!(spans.len(), 10);
    assert!(spans.iter().all(|span| span.name == "append" && span.events.is_empty()));
    let records = spans[0].attributes.iter().find(|attribute| attribute.key == "records").unwrap();
    assert_eq!(records.value.as_ref().unwrap().value, Some(Value::IntValue(7)));
    let service = resource.resource.as_ref().unwrap().attributes.iter().find(|a| a.key == "service.name");
    assert_eq!(service.unwrap().value.as_ref().unwrap().value, Some(Value::StringValue("prog".into())));
}
