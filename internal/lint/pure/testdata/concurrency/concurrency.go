package concurrency

type inbox chan int // want: channel type: the core talks in arguments and results

func f(in inbox) {
	go f(in) // want: go statement: the core starts no goroutine
	select { // want: select: the core waits for nothing
	case <-in:
	default:
	}
	var _ func(<-chan int) // want: channel type: the core talks in arguments and results
	_ = make(chan int)     // want: channel type: the core talks in arguments and results
}
