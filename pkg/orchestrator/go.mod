module github.com/getpup/pupsourcing-orchestrator/pkg/orchestrator

go 1.25.0

require (
	github.com/getpup/pupsourcing v1.0.0
	github.com/getpup/pupsourcing-orchestrator v0.0.0
	github.com/google/go-cmp v0.7.0
	github.com/google/uuid v1.6.0
	github.com/lib/pq v1.12.3
)

require (
	github.com/fergusstrange/embedded-postgres v1.34.0 // indirect
	github.com/xi2/xz v0.0.0-20171230120015-48954b6210f8 // indirect
)

replace github.com/getpup/pupsourcing-orchestrator => ../../
