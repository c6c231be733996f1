package imports

import (
	"context"   // want: import of "context": not on the list of pure packages
	_ "embed"   // want: import of "embed": not on the list of pure packages
	"math/rand" // want: import of "math/rand": not on the list of pure packages
	"slices"

	"example.com/not/installed" // want: import of "example.com/not/installed": not on the list of pure packages
)

func f(ctx context.Context, s []int) {
	rand.Shuffle(len(s), installed.Swapper(s))
	slices.Sort(s)
}
