package order

import (
	"maps"
	"slices"
)

type members map[string]int

func f(m map[string]int, named members, pairs []members) {
	for range m { // want: range over a map: its order is random; range over slices.Sorted(maps.Keys(m))
	}
	for k, v := range named { // want: range over a map: its order is random; range over slices.Sorted(maps.Keys(m))
		_, _ = k, v
	}
	for k := range pairs[0] { // want: range over a map: its order is random; range over slices.Sorted(maps.Keys(m))
		_ = k
	}
	for k := range maps.Keys(m) { // want: maps.Keys: its order is random; wrap it directly in slices.Sorted or slices.SortedFunc
		_ = k
	}
	_ = slices.Collect(maps.Values(m)) // want: maps.Values: its order is random; wrap it directly in slices.Sorted or slices.SortedFunc
	for k, v := range maps.All(m) {    // want: maps.All: its order is random; wrap it directly in slices.Sorted or slices.SortedFunc
		_, _ = k, v
	}
	keys := maps.Keys[members] // want: maps.Keys: its order is random; wrap it directly in slices.Sorted or slices.SortedFunc
	_ = slices.Sorted(keys(named))
}

func generic[M ~map[K]V, K comparable, V any](m M) {
	for k := range m { // want: range over a map: its order is random; range over slices.Sorted(maps.Keys(m))
		_ = k
	}
}
