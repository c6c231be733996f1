// The test of the manifests, in a module of its own: nobody who uses the library
// needs Kubernetes' types.
module github.com/getpup/pupsourcing-orchestrator/examples/kubernetes

go 1.25.0

require github.com/getpup/pupsourcing-orchestrator v0.0.0

replace github.com/getpup/pupsourcing-orchestrator => ../../
