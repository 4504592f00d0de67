// The operators' page, as an operator uses it.

export const signIn = async (operator, gateway) => {
  const { page } = operator;
  await page.goto(gateway.ops);
  await page.getByLabel('Your name').fill('Ines');
  await page.getByLabel('Password').fill(gateway.opsPassword);
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByRole('heading', { name: 'Live sessions' }).waitFor();
};
