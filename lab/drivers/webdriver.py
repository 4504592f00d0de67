"""A Selenium script in a running Chromium: moves by action chains and clicks. Argument: one JSON object."""
import json
import random
import sys
import time

import paths


def main():
    task = json.loads(sys.argv[1])
    chance = random.Random(task["seed"])
    from selenium import webdriver
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.debugger_address = f"127.0.0.1:{task['port']}"
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    driver.switch_to.window(driver.window_handles[0])
    end = time.perf_counter() + task["seconds"]
    duration_ms, rest = chance.randint(150, 900), chance.uniform(0.15, 0.6)
    while time.perf_counter() < end:
        x, y = paths.target(chance, task["width"], task["height"])
        actions = ActionBuilder(driver, duration=int(duration_ms * chance.uniform(0.8, 1.2)))
        actions.pointer_action.move_to_location(int(x), int(y))
        if chance.random() < 0.6:
            actions.pointer_action.click()
        actions.perform()
        time.sleep(paths.pause(chance, rest))


if __name__ == "__main__":
    main()
