package output

import "fmt"

func f() {
	fmt.Print("x")       // want: fmt.Print: the core reads and writes no standard stream
	fmt.Printf("%d", 1)  // want: fmt.Printf: the core reads and writes no standard stream
	fmt.Println("x")     // want: fmt.Println: the core reads and writes no standard stream
	log := fmt.Println   // want: fmt.Println: the core reads and writes no standard stream
	_, _ = fmt.Scanln()  // want: fmt.Scanln: the core reads and writes no standard stream
	println("debugging") // want: println: the core reads and writes no standard stream
	_, _ = log("x")
}
