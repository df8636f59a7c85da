package main

import (
	"bytes"
	"fmt"

	"github.com/vole-vmm/vole/vmm"
)

// lastWordsMax bounds what of a guest's line is repeated in an error, in bytes.
const lastWordsMax = 200

// lastWords is what the guest's console says of its end, to put behind the reason: the panic's
// line where it panicked, otherwise its last line. It is "" where there is none, or nothing to
// explain.
func lastWords(exit vmm.Exit, console []byte) string {
	var line []byte
	switch exit.Reason {
	case vmm.Panic:
		// The same words stand in the panic's last line, "---[ end Kernel panic - …".
		const words, end = "Kernel panic - not syncing", "---[ end "
		for rest := console; len(line) == 0; {
			i := bytes.LastIndex(rest, []byte(words))
			if i < 0 {
				break
			}
			if rest = console[:i]; !bytes.HasSuffix(rest, []byte(end)) {
				line, _, _ = bytes.Cut(console[i:], []byte("\n"))
			}
		}
	case vmm.Timeout, vmm.TripleFault, vmm.HostError:
		for line = range bytes.Lines(bytes.TrimRight(console, " \t\r\n")) {
		}
	}
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return ""
	}
	if len(line) > lastWordsMax {
		line = append(line[:lastWordsMax:lastWordsMax], "..."...)
	}
	return fmt.Sprintf("; on its console: %q", line)
}
