//! `grpc.health.v1`: serving while a request would be answered.

use std::{sync::Arc, time::Duration};

use tonic_health::{
    ServingStatus,
    pb::health_server::{Health as HealthProto, HealthServer},
    server::{HealthReporter, HealthService},
};

use crate::{listen::Stop, service::Service};

/// Names that health is told under: the whole server, and its one service.
const SERVICES: [&str; 2] = ["", "dopd.v1.InferenceService"];
/// How often readiness is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// Tells health what the service says.
pub(super) struct Health {
    service: Arc<Service>,
    reporter: HealthReporter,
}

impl Health {
    /// The teller, and the server that clients ask. Names are known from the start: a watch of an
    /// unknown one is an error.
    pub(super) async fn new(service: Arc<Service>) -> (Self, HealthServer<impl HealthProto>) {
        let reporter = HealthReporter::new();
        let server = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let health = Self { service, reporter };
        health.tell(health.service.readiness().is_ready()).await;
        (health, server)
    }

    /// Follows readiness until `stop` says to drain, then tells that nothing is served, and at its
    /// end leaves: those who watch hear the end of their streams.
    pub(super) async fn watch(mut self, stop: Stop) {
        let mut interval = tokio::time::interval(INTERVAL);
        let mut told = None;
        loop {
            tokio::select! {
                () = stop.drain.cancelled() => break,
                () = stop.end.cancelled() => break,
                _ = interval.tick() => {}
            }
            let ready = self.service.readiness().is_ready();
            if told.replace(ready) != Some(ready) {
                self.tell(ready).await;
            }
        }
        self.tell(false).await;
        stop.end.cancelled().await;
        for name in SERVICES {
            self.reporter.clear_service_status(name).await;
        }
    }

    async fn tell(&self, ready: bool) {
        let status = if ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for name in SERVICES {
            self.reporter.set_service_status(name, status).await;
        }
    }
}
