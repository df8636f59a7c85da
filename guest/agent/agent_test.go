package agent

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
)

const payloadEnv = "VOLE_AGENT_PAYLOAD"

func payload() {}

func TestThin(t *testing.T) {
	g, _ := newGuest(t, wire.Config{Hostname: "box"})
	ctx := bounded(t)
	hello, err := g.Ready(ctx)
	require.NoError(t, err)
	t.Logf("%+v", hello)
	c := g.CommandContext(ctx, "sh", "-c", "echo out; echo err >&2; cat; hostname; id; mount; exit 7")
	c.Stdin = bytes.NewReader([]byte("in\n"))
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err = c.Run()
	t.Log(out.String())
	var exit *remote.ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 7, exit.ExitCode())
	assert.Equal(t, "err\n", errs.String())
}
