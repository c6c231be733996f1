//go:build race

package sim

// A world has one thread, so the race detector finds little and makes it ten times as slow.
const raced = true
