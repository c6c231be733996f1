package sim

import (
	"runtime/debug"
	"testing"
)

// The command names the test and its package, so that it runs from any folder of the
// module.
func TestCommandOfATest(t *testing.T) {
	for _, tt := range []struct {
		test string
		info *debug.BuildInfo
		want string
	}{
		{"TestA", &debug.BuildInfo{Path: "example.com/shop.test"}, "SIM_SEED=7 go test -count=1 -run '^TestA$' example.com/shop"},
		{"TestA/it's_a.case#01", &debug.BuildInfo{Path: "example.com/shop.test"}, `SIM_SEED=7 go test -count=1 -run '^TestA$/^it'\''s_a\.case#01$' example.com/shop`},
		{"TestA", &debug.BuildInfo{Path: "command-line-arguments.test"}, "SIM_SEED=7 go test -count=1 -run '^TestA$' ."},
		{"TestA", nil, "SIM_SEED=7 go test -count=1 -run '^TestA$' ."},
	} {
		if got := testCommand(7, tt.test, tt.info); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.test, got, tt.want)
		}
	}
}
