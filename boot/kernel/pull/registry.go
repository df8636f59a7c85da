package pull

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// registry is the API of an OCI registry for one repository (OCI Distribution
// Specification 1.1; the tokens are described in the documentation of Docker's
// registry, "Token authentication").
type registry struct {
	web    *web
	source imageSource
	header http.Header // with the authorization, once there is one
}

var manifestTypes = strings.Join([]string{typeOCIManifest, typeOCIIndex, typeDockerManifest, typeDockerList}, ", ")

const maxToken = 1 << 20

// get reads a manifest, at most max bytes. It gets a token if it is asked for
// one.
func (r *registry) get(ctx context.Context, url string, max int64) (b []byte, resp *http.Response, err error) {
	err = r.authorized(ctx, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		req.Header = r.header.Clone()
		req.Header.Set("Accept", manifestTypes)
		b, resp, err = r.web.get(req, max)
		return err
	})
	return b, resp, err
}

// blob fetches a layer. Tokens live some minutes: a long download may need
// another.
func (r *registry) blob(ctx context.Context, d download, to string, report *reporter) error {
	return r.authorized(ctx, func() error {
		d.header = r.header
		_, err := r.web.fetch(ctx, d, to, report)
		return err
	})
}

// authorized calls try, and once more with a new token if it is refused without
// or with an old one.
func (r *registry) authorized(ctx context.Context, try func() error) error {
	err := try()
	var status *statusError
	if !errors.As(err, &status) || status.status != http.StatusUnauthorized {
		return err
	}
	if aerr := r.authorize(ctx, status.challenge); aerr != nil {
		return fmt.Errorf("%w; %w", err, aerr)
	}
	return try()
}

// authorize does what a WWW-Authenticate header asks for.
func (r *registry) authorize(ctx context.Context, challenge string) error {
	scheme, params, _ := strings.Cut(challenge, " ")
	login := dockerLogin(r.source.registry)
	switch strings.ToLower(scheme) {
	case "basic":
		if login == "" {
			return fmt.Errorf("it wants a login: `docker login %s`", r.source.registry)
		}
		r.header.Set("Authorization", "Basic "+login)
		return nil
	case "bearer":
		token, err := r.token(ctx, challengeParams(params), login)
		if err != nil {
			return fmt.Errorf("getting a token: %w", err)
		}
		r.header.Set("Authorization", "Bearer "+token)
		return nil
	}
	return fmt.Errorf("it wants an authorization of an unknown kind %q", scheme)
}

// token asks the server that the registry names for a token.
func (r *registry) token(ctx context.Context, params map[string]string, login string) (string, error) {
	u, err := url.Parse(params["realm"])
	if err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && strings.HasPrefix(r.source.base(), "http:")) {
		return "", fmt.Errorf("%w: the registry names %q for that", ErrUnavailable, params["realm"])
	}
	q := u.Query()
	if params["service"] != "" {
		q.Set("service", params["service"])
	}
	q.Set("scope", "repository:"+r.source.repository+":pull")
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	if login != "" {
		req.Header.Set("Authorization", "Basic "+login)
	}
	b, _, err := r.web.get(req, maxToken)
	if err != nil {
		return "", err
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return "", fmt.Errorf("%s: %w", u.Host, err)
	}
	if answer.Token == "" {
		answer.Token = answer.AccessToken
	}
	if answer.Token == "" || strings.ContainsFunc(answer.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s answers without a token", u.Host)
	}
	return answer.Token, nil
}

// challengeParams reads realm="https://...",service="...".
func challengeParams(s string) map[string]string {
	params := map[string]string{}
	for s != "" {
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			break
		}
		var value string
		if quoted, ok := strings.CutPrefix(rest, `"`); ok {
			value, rest, _ = strings.Cut(quoted, `"`)
			_, s, _ = strings.Cut(rest, ",")
		} else {
			value, s, _ = strings.Cut(rest, ",")
		}
		params[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(value)
	}
	return params
}

// dockerLogin is what `docker login` or `podman login` has written down for a
// registry: user and password in base64, or "". Credential helpers are not
// asked.
func dockerLogin(host string) string {
	var files []string
	if file := os.Getenv("REGISTRY_AUTH_FILE"); file != "" {
		files = append(files, file)
	}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		files = append(files, filepath.Join(dir, "config.json"))
	} else if home, err := os.UserHomeDir(); err == nil {
		files = append(files, filepath.Join(home, ".docker/config.json"))
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		files = append(files, filepath.Join(dir, "containers/auth.json"))
	}
	names := []string{host, "https://" + host}
	if host == dockerHub {
		names = append(names, "https://index.docker.io/v1/")
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var config struct {
			Auths map[string]struct {
				Auth string `json:"auth"`
			} `json:"auths"`
		}
		if json.Unmarshal(b, &config) != nil {
			continue
		}
		for _, name := range names {
			login := config.Auths[name].Auth
			if plain, err := base64.StdEncoding.DecodeString(login); err == nil && strings.Contains(string(plain), ":") {
				return login
			}
		}
	}
	return ""
}
