//! gRPC health checks (`grpc.health.v1`), which say what `/readyz` says.

use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::{HealthReporter, health_reporter},
};

use crate::admin::Readiness;

/// What answers for `services` (the empty name is the process), and what keeps its answers true: SERVING while nothing
/// blocks. The latter ends at `stopping`, and takes the services away: that ends the watches on them, which would hold
/// up a drain.
pub async fn service(
    services: &'static [&'static str],
    readiness: Readiness,
    stopping: impl Future<Output = ()>,
) -> (HealthServer<impl Health>, impl Future<Output = ()>) {
    let (mut health, service) = health_reporter();
    tell(&health, services, ServingStatus::NotServing).await;
    let report = async move {
        let following = async {
            loop {
                readiness.ready().await;
                tell(&health, services, ServingStatus::Serving).await;
                readiness.blocked().await;
                tell(&health, services, ServingStatus::NotServing).await;
            }
        };
        tokio::select! {
            () = stopping => {}
            () = following => {}
        }
        for service in services {
            health.clear_service_status(service).await;
        }
    };
    (service, report)
}

async fn tell(health: &HealthReporter, services: &[&str], status: ServingStatus) {
    for service in services {
        health.set_service_status(service, status).await;
    }
}
