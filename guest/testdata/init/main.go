// Command init is the least program that can be a guest's PID 1.
package main

import (
	"os"

	"github.com/vole-vmm/vole/guest"
)

func main() { os.Exit(guest.Main()) }
