package orchestratorpgx_test

const childEnv = "ORCHESTRATORPGX_TEST_CHILD"

func childMain(string) int { return 1 }
