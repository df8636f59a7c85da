package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/agent"
	"github.com/vole-vmm/vole/guest/wire"
)

// isAgent says whether the archive makes this PID 1 an agent.
func isAgent() bool {
	var st unix.Stat_t
	return unix.Stat("/"+wire.ConfigFile, &st) == nil
}

// runAgent is PID 1 as the agent, which began when the kernel was up for so long. A
// panic ends the process with its stack on the console, and with it the kernel.
func runAgent(up time.Duration) int {
	say := openConsole().print
	c, err := takeConfig("/" + wire.ConfigFile)
	if err != nil {
		say(fmt.Sprintf("vole guest: the agent's configuration can't be read: %v\n", err))
		return failedCode
	}
	err = agent.Run(agent.Options{Config: c, Began: up, Say: say})
	say(fmt.Sprintf("vole guest: the machine goes on although it was switched off: %v\n", err))
	return failedCode
}

// takeConfig reads the agent's configuration and removes it: nobody else is to know what is
// in it, and commands may run on the file system that it is in.
func takeConfig(name string) (c wire.Config, err error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return c, err
	}
	if err := unix.Unlink(name); err != nil {
		return c, fmt.Errorf("remove %s: %w", name, err)
	}
	return c, json.Unmarshal(b, &c)
}
