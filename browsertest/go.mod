module github.com/getpup/pupsourcing-orchestrator/browsertest

go 1.25.0

require (
	github.com/chromedp/cdproto v0.159.0
	github.com/chromedp/chromedp v0.23.0
	github.com/getpup/pupsourcing-orchestrator v0.0.0
	github.com/lib/pq v1.12.3
)

require (
	github.com/fergusstrange/embedded-postgres v1.34.0 // indirect
	github.com/go-json-experiment/json v0.0.0-20260213210345-44df1a37e875 // indirect
	github.com/xi2/xz v0.0.0-20171230120015-48954b6210f8 // indirect
)

replace github.com/getpup/pupsourcing-orchestrator => ../
